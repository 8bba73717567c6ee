"""Lightning under whichever of its two names the program uses.

``pytorch_lightning`` and ``lightning.pytorch`` are two copies of one library whose classes do not fit each other, so the classes of this
package are built on the copy that the program has imported already; with none or both imported, on ``lightning.pytorch`` if installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING

__all__ = ["environments", "pl"]

FLAVOURS = ("lightning.pytorch", "pytorch_lightning")


def _choose() -> str:
    imported = [name for name in FLAVOURS if name in sys.modules]
    if imported:
        return imported[0]
    for name in FLAVOURS:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            return name
    raise ModuleNotFoundError("lightning_ext needs PyTorch Lightning: pip install 'headway[lightning]'.", name="pytorch_lightning")


if TYPE_CHECKING:
    import pytorch_lightning as pl
    from pytorch_lightning.plugins import environments
else:
    pl = importlib.import_module(_choose())
    environments = importlib.import_module(f"{pl.__name__}.plugins.environments")
