"""Pictures of `--eval-only` for autoencoders."""


def look_inside(run, model, data):
    from lib.tasks import reconstruction as t

    t.report(run, model, data, t.ReportSettings.of(run.flags))
