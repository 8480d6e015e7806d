"""Lightning Fabric, imported without torchmetrics.

Fabric imports torchmetrics only to compare its version, and that alone brings SciPy, Matplotlib and transformers along:
half of the seconds that the start of a training takes.
"""

import sys

if "torchmetrics" in sys.modules:
    from lightning_fabric import Fabric
else:
    sys.modules["torchmetrics"] = None  # pyright: ignore[reportArgumentType]  # Python's way to say: cannot be imported
    try:
        from lightning_fabric import Fabric
    finally:
        del sys.modules["torchmetrics"]

__all__ = ["Fabric"]
