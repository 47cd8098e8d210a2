"""The objects whose histories can be judged, by name."""

from collections.abc import Mapping
from types import MappingProxyType

from raftkv.check.model import Model
from raftkv.check.models.bank import Bank
from raftkv.check.models.foreign import CasRegister, KeyValue
from raftkv.check.models.growing import Append, Set
from raftkv.check.models.lock import Lock
from raftkv.check.models.register import Register

__all__ = ["MODELS"]

MODELS: Mapping[str, Model] = MappingProxyType(
    {
        model.name: model
        for model in (Register(), Set(), Append(), Bank(), Lock(), CasRegister(), KeyValue())
    }
)
