"""Updates: what `lib.training.fit.fit` does with one batch, by one optimizer or by several.

Most runs minimise one objective over all parameters (`OneObjective`, which `fit` makes by itself). A
generator and its discriminator take turns, each with an optimizer of its own (`SeveralOptimizers`):

    def alternate(model, batch, optimizers):
        (real,) = batch
        fake = model.generator(torch.randn(len(real), 16, device=real.device))
        answers, answers_to_fakes = model.discriminator(real), model.discriminator(fake.detach())
        loss_d = (softplus(-answers) + softplus(answers_to_fakes)).sum()
        optimizers["discriminator"].minimise(loss_d, len(real))
        loss_g = softplus(-model.discriminator(fake)).sum()
        optimizers["generator"].minimise(loss_g, len(real))
        return {"loss": loss_g, "Discriminator_loss": loss_d, "count": len(real)}

    parts = ("generator", "discriminator")
    update = SeveralOptimizers(alternate, {part: Minimiser(model, settings, parts=(part,)) for part in parts})
    fit(model, objective, training, validation, settings, update=update, …)

Random numbers come from torch's global generators, which `fit` seeds by (seed, update, rank). An update that
draws from elsewhere, or keeps anything but weights, buffers and optimizers, cannot be resumed exactly.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeGuard, cast

import torch
from torch import Tensor, nn

from lib.runtime import distributed
from lib.runtime.errors import UserError
from lib.training.objectives import Objective, Sums
from lib.training.optimisation import Settings, make_optimizer, trainable_parameters, unit_lr_multiplier


class Update(Protocol):
    """One training step on one batch, and the optimizers that take it."""

    def runner(self, model: nn.Module, compiled: bool) -> nn.Module:
        """Return what `step` calls in place of `model`, which holds the same weights.

        It is compiled if `compiled`, and starts on every rank from the weights of rank 0.
        """

    def step(self, runner: nn.Module, batch: Any, factor: float) -> Sums:
        """Change the weights by one step, and return sums over the batch: `loss`, `count`, and any others.

        The `[TRAIN]` line has the mean of each over the examples, the loss as `Training_loss` and the others
        under their own names. A sum that is not finite stops the run. `fit` calls this under autocast if the
        run has `amp`.

        Args:
            runner: from `runner`.
            batch: from the training data.
            factor: multiplier of the learning rates in this update, from the schedule.
        """

    def state(self) -> dict[str, Any]:
        """Return the state of the optimizers as plain values and tensors, for a checkpoint."""

    def load_state(self, saved: Any, source: Path) -> None:
        """Take over what `state` returned; `source` is the checkpoint's name in messages.

        Raises:
            UserError: it is of other optimizers or parameters, or damaged.
        """


class Minimiser:
    """An optimizer for some of a model's parameters: it minimises losses over these and changes no other.

    Args:
        model: the whole network, on its device.
        settings: read are optimizer, learning_rate, weight_decay, momentum, beta2 and clip_norm. Optimizers
            of one run may differ in each (`dataclasses.replace`); the schedule is that of `fit`'s settings.
        parts: names of sub-modules or parameters, e.g. ('encoder', 'decoder'); none for the whole network.
        lr_multiplier: function from a parameter's name in `model` to the multiplier of its learning rate.

    Raises:
        ValueError: `model` has no such part.
        UserError: none of the parameters is trainable, or the optimizer does not suit them.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Settings,
        *,
        parts: Sequence[str] = (),
        lr_multiplier: Callable[[str], float] = unit_lr_multiplier,
    ) -> None:
        self.settings = settings
        self.parameters = trainable_parameters(model, parts)
        self.optimizer = make_optimizer(model, settings, lr_multiplier, parts)
        self.device = next(model.parameters()).device

    def set_learning_rate(self, factor: float) -> None:
        """Set the learning rate of the next step to `factor` times that of the settings."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor * group["rate"]

    def minimise(self, loss: Tensor, count: Tensor | int) -> None:
        """Take one step that makes `loss` smaller; arguments as for `add_gradient`."""
        self.add_gradient(loss, count)
        self.step()

    def add_gradient(self, loss: Tensor, count: Tensor | int, *, retain_graph: bool = False) -> None:
        """Add the gradient of a mean loss to those of the own parameters.

        Use this and `step` in place of `minimise` where several losses share parts of one graph: a step
        overwrites weights that the gradients of the others still need, so that all gradients come first.

        Args:
            loss: sum over the examples of this rank, ().
            count: number of these examples; the mean is over those of all ranks.
            retain_graph: keep the graph for a further gradient through it.
        """
        # Gradients of other parameters are not even computed: the generator's loss, which passes through the
        # discriminator, would otherwise leave in it a gradient that its own next step then adds.
        self._backward(loss, count, inputs=list(self.parameters.values()), retain_graph=retain_graph)

    def step(self) -> None:
        """Clip the gradients, which become their mean over all ranks, and take one step along them."""
        distributed.average_gradients(self.parameters.values())
        self._descend()

    def minimise_under_ddp(self, loss: Tensor, count: Tensor | int) -> None:
        """Take one step; `backward` computes all gradients, and DistributedDataParallel averages them."""
        self._backward(loss, count)
        self._descend()

    def _backward(self, loss: Tensor, count: Tensor | int, **options: Any) -> None:
        # PyTorch advises against autocast around `backward`; operations run there as they did in `forward`.
        with torch.autocast(self.device.type, enabled=False):
            (loss * distributed.mean_factor(count, self.device)).backward(**options)

    def _descend(self) -> None:
        with torch.autocast(self.device.type, enabled=False):  # Muon multiplies matrices in float32
            if self.settings.clip_norm:
                nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip_norm)
            self.optimizer.step()
        self.optimizer.zero_grad()
        # Autocast keeps weights that it has rounded to bfloat16 until it ends. The next half of this update
        # would see the ones from before this step.
        torch.clear_autocast_cache()

    def state(self) -> dict[str, Any]:
        """Return the optimizer's state, by parameter name.

        PyTorch's own state_dict numbers the parameters group by group, and the groups depend on the flags.
        """
        kept = self.optimizer.state
        state = {name: kept[p] for name, p in self.parameters.items() if kept.get(p)}
        return self.optimizer.state_dict() | {"kind": self.settings.optimizer, "state": state}

    def load_state(self, saved: Any, source: Path) -> None:
        """Take over what `state` returned; `source` is the checkpoint's name in messages.

        Only the state is restored: weight decay, momentum and other options are those of this run's settings.

        Raises:
            UserError: it is of another optimizer or of other parameters, or damaged.
        """
        if not _is_state(saved):
            raise UserError(f"{source} cannot be resumed: the state of its optimizer is damaged")
        its = saved["state"]
        # A parameter that no loss has used yet has no state, so that the number of parameters counts, too.
        trained = sum(len(group["params"]) for group in saved["param_groups"])
        same_parameters = trained == len(self.parameters) and its.keys() <= self.parameters.keys()
        if saved["kind"] != self.settings.optimizer or not same_parameters:
            raise UserError(f"{source} was saved with another optimizer: give the same --optimizer")
        for name, kept in its.items():
            if not self._fits(kept, self.parameters[name]):
                raise UserError(f"{source} cannot be resumed: its optimizer's state of {name} is damaged")
        names = {parameter: name for name, parameter in self.parameters.items()}
        mine = [names[p] for group in self.optimizer.param_groups for p in group["params"]]
        state = {number: its[name] for number, name in enumerate(mine) if name in its}
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})

    def _fits(self, kept: Any, parameter: nn.Parameter) -> bool:
        """Tell whether `kept` is this optimizer's state of `parameter`.

        PyTorch loads anything, and fails in the next step.
        """
        shapes = dict.fromkeys(("exp_avg", "exp_avg_sq"), parameter.shape) | {"step": torch.Size()}
        if self.settings.optimizer == "sgd":
            shapes = {"momentum_buffer": parameter.shape}
        elif self.settings.optimizer == "muon" and parameter.ndim > 2:
            shapes = {"momentum_buffer": parameter.shape, "step": torch.Size()}
        return (
            isinstance(kept, dict)
            and kept.keys() == shapes.keys()
            and all(isinstance(value, Tensor) and value.shape == shapes[name] for name, value in kept.items())
        )


def _is_state(saved: Any) -> TypeGuard[dict[str, Any]]:
    """Tell whether `saved` has the entries of `Minimiser.state`."""
    if not isinstance(saved, dict):
        return False
    groups = saved.get("param_groups")
    return (
        isinstance(saved.get("kind"), str)
        and isinstance(saved.get("state"), dict)
        and isinstance(groups, list)
        and all(isinstance(each, dict) and isinstance(each.get("params"), list) for each in groups)
    )


class OneObjective:
    """The usual update: the loss of one objective, minimised over all trainable parameters.

    Args:
        model, settings, lr_multiplier: as for `Minimiser`.
        objective: function from the network and a batch to sums.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: Settings,
        lr_multiplier: Callable[[str], float] = unit_lr_multiplier,
    ) -> None:
        self.objective = objective
        self.minimiser = Minimiser(model, settings, lr_multiplier=lr_multiplier)

    def runner(self, model: nn.Module, compiled: bool) -> nn.Module:
        """Return `model`, compiled and under DistributedDataParallel, where these are wanted."""
        if compiled:
            model = _compiled(model)
        if distributed.world_size() == 1:
            return model
        devices = [self.minimiser.device] if self.minimiser.device.type == "cuda" else None
        # It sends the gradients of the last layers while those of the first are still being computed.
        return nn.parallel.DistributedDataParallel(model, device_ids=devices)

    def step(self, runner: nn.Module, batch: Any, factor: float) -> Sums:
        """Change the weights by one step, and return the objective's sums."""
        self.minimiser.set_learning_rate(factor)
        sums = self.objective(runner, batch)
        self.minimiser.minimise_under_ddp(torch.as_tensor(sums["loss"]), sums["count"])
        return sums

    def state(self) -> dict[str, Any]:
        """Return the optimizer's state; see `Minimiser.state`."""
        return self.minimiser.state()

    def load_state(self, saved: Any, source: Path) -> None:
        """Take over a state; see `Minimiser.load_state`."""
        if _is_of_several(saved):
            theirs = _listed(saved["optimizers"])
            raise UserError(f"{source} was saved with {theirs}; this run has one optimizer")
        self.minimiser.load_state(saved, source)


class SeveralOptimizers:
    """An update by several optimizers, each over its own part of one model.

    Args:
        function: takes the model, a batch and the optimizers by name, calls `minimise` of each of them, and
            returns the sums to report. It may call sub-modules of the model, as in the example above.
        minimisers: the optimizers by name; the names stand in checkpoints.

    Raises:
        ValueError: a parameter belongs to two of them.
    """

    def __init__(
        self,
        function: Callable[[nn.Module, Any, Mapping[str, Minimiser]], Sums],
        minimisers: Mapping[str, Minimiser],
    ) -> None:
        self.function, self.minimisers = function, dict(minimisers)
        owner: dict[nn.Parameter, str] = {}
        for each, minimiser in self.minimisers.items():
            for name, parameter in minimiser.parameters.items():
                if owner.setdefault(parameter, each) != each:
                    raise ValueError(f"{name} belongs to both optimizers {owner[parameter]} and {each}")

    def runner(self, model: nn.Module, compiled: bool) -> nn.Module:
        """Return `model` itself, or a copy that shares its weights and whose sub-modules are compiled.

        It is never wrapped in DistributedDataParallel, which waits for gradients of all parameters at once
        and hides the sub-modules; each `Minimiser` averages its own gradients over the ranks.

        Raises:
            ValueError: a trainable parameter belongs to none of the optimizers.
        """
        owned = {name for each in self.minimisers.values() for name in each.parameters}
        for name in trainable_parameters(model):
            if name not in owned:
                raise ValueError(f"{name} belongs to no optimizer: give it to one, or freeze it")
        distributed.share_weights(model)
        return _with_compiled_parts(model) if compiled else model

    def step(self, runner: nn.Module, batch: Any, factor: float) -> Sums:
        """Change the weights by one step of the function, and return its sums."""
        # As DistributedDataParallel does: what a rank keeps is then nothing that a resume could not restore.
        distributed.share_buffers(runner)
        for minimiser in self.minimisers.values():
            minimiser.set_learning_rate(factor)
        return self.function(runner, batch, self.minimisers)

    def state(self) -> dict[str, Any]:
        """Return the states of the optimizers by name, under 'optimizers'."""
        return {"optimizers": {name: each.state() for name, each in self.minimisers.items()}}

    def load_state(self, saved: Any, source: Path) -> None:
        """Take over what `state` returned; `source` is the checkpoint's name in messages.

        Raises:
            UserError: it is of other optimizers or parameters, or damaged.
        """
        its = saved["optimizers"] if _is_of_several(saved) else None
        if its is None or its.keys() != self.minimisers.keys():
            theirs = "one optimizer" if its is None else _listed(its)
            raise UserError(f"{source} was saved with {theirs}; this run has {_listed(self.minimisers)}")
        for name, minimiser in self.minimisers.items():
            minimiser.load_state(its[name], source)


def _is_of_several(saved: Any) -> TypeGuard[dict[str, dict]]:
    return isinstance(saved, dict) and isinstance(saved.get("optimizers"), dict)


def _listed(named: Mapping[str, Any]) -> str:
    return f"the optimizers {', '.join(map(str, named))}"


def _compiled(module: nn.Module) -> nn.Module:
    # torch.compile returns a module for a module; its annotation says only that it is callable.
    return cast(nn.Module, torch.compile(module))


def _with_compiled_parts(model: nn.Module) -> nn.Module:
    """Return a copy of `model` that shares its weights, with each sub-module compiled.

    Compiling `model` itself would compile its own `forward` alone, and not a call of a sub-module.
    """
    runner = copy.copy(model)
    runner._modules = {
        # A list or dictionary of modules has no `forward`, and is read by index.
        name: part if part is None or isinstance(part, nn.ModuleList | nn.ModuleDict) else _compiled(part)
        for name, part in model._modules.items()
    }
    return runner
