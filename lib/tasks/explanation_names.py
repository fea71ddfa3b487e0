"""Names of the files that the scripts that explain images write."""

import re
from collections.abc import Iterable
from typing import NamedTuple


class Naming(NamedTuple):
    """What the names of files say: the method, and in what this run differs from the usual one."""

    method: str = ""
    parts: tuple[str, ...] = ()

    def stem(self, networks: Iterable[str], images: Iterable[str]) -> str:
        """Return a file's name without its suffix."""
        parts = [self.method, _joined(networks), _joined(images), *map(_plain, self.parts)]
        return "-".join(parts)[:200]


PLAIN = Naming()


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+]+", "-", name).strip("-.") or "image"


def _joined(names: Iterable[str]) -> str:
    """Return names as a part of a file name: all of them if there are at most three, else only the first."""
    parts = list(dict.fromkeys(map(_plain, names)))
    shown = parts if len(parts) <= 3 else [parts[0], f"and-{len(parts) - 1}-more"]
    return "-".join(shown)[:100]
