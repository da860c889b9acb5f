"""Networks for small images, by name."""

from sam_core.models import resnet as _resnet
from sam_core.models import small as _small
from sam_core.models import vit as _vit
from sam_core.models.registry import make, names, options, register

__all__ = ["make", "names", "options", "register"]

del _resnet, _small, _vit  # imported for the names they register
