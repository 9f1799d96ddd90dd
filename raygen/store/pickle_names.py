"""Names that a pickled checkpoint may mention, and what may stand in their place."""

from typing import Final

__all__ = ["INERT", "INERT_NAMES", "LITERALS"]


#: What else lies in checkpoints of training programs: classes that name a callback, settings. They become stand-ins.
#: Modules, of which any name may be mentioned.
INERT: Final = (
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "torchmetrics",
    "ldm",
    "taming",
    "main",
    "__main__",
    "cldm",
    "guided_diffusion",
    "typing",
    "argparse",
    "pathlib",
    "datetime",
    "torch.optim",
    "torch.nn.modules",
    "torch.nn.functional",
    "torch.torch_version",
    "torchvision.transforms",
    "transformers",
    "diffusers.configuration_utils",
    "numpy.random",
    "numpy.dtypes",
    # dictionaries of settings
    "omegaconf",
    "easydict",
    "yacs",
    "addict",
    "box",
    "munch",
    "attrdict",
    "mmcv",
    "mmengine",
    "ml_collections",
    "fvcore.common.config",
    "detectron2.config",
)
#: Types of Python that hold values. Their modules hold functions too, which stay refused.
_BUILTINS: Final = (
    "Ellipsis",
    "NotImplemented",
    "bool",
    "bytearray",
    "bytes",
    "complex",
    "float",
    "frozenset",
    "int",
    "list",
    "long",
    "object",
    "range",
    "slice",
    "str",
    "tuple",
    "unicode",
    "xrange",
)
#: Single names that become stand-ins.
INERT_NAMES: Final = frozenset(
    {
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS),
        *(f"collections.{name}" for name in ("Counter", "deque", "ChainMap", "UserDict", "UserList")),
        *(f"{module}._reconstructor" for module in ("copyreg", "copy_reg")),  # how old protocols write objects
        "decimal.Decimal",
        "fractions.Fraction",
        "types.SimpleNamespace",
        "uuid.UUID",
        "functools.partial",
        *(f"numpy.{name}" for name in ("bool", "bool_", "str_", "bytes_", "complex64", "complex128")),
        *(
            f"numpy.{kind}{bits}"
            for kind in ("int", "uint", "float")
            for bits in (8, 16, 32, 64)
            if kind + str(bits) != "float8"
        ),
        "torch.device",
        "torch.serialization._get_layout",
        *(f"torch.{name}" for name in ("complex32", "complex64", "complex128", "uint16", "uint32", "uint64")),
        *(f"torch.float8_{name}" for name in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz")),
    }
)
#: Opcodes whose argument is the value.
LITERALS: Final = frozenset(
    {
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
    }
)
