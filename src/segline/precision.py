"""What the hardware does fast: precision of the arithmetic and memory format of images and weights."""

from __future__ import annotations

import torch

#: Short names of precisions -> Lightning's.
_NAMES = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
#: Layers that autocast computes in low precision, with weights that nothing else looks at: no subclass, which may.
_CAST_LAYERS = {
    torch.nn.Linear,
    *(torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d),
    *(torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d),
}


def fast_precision(accelerator: str) -> str:
    """The lowest precision that networks bear and the hardware is fast at, by Lightning's name.

    Args:
        accelerator: `cpu`, or `gpu` or `cuda`.
    """
    if accelerator != "cpu":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    capabilities = torch.cpu.get_capabilities()
    return "bf16-mixed" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "32-true"


def full_name(precision: str) -> str:
    """Lightning's name of a precision, of the short one or of itself.

    Raises:
        ValueError: Neither is the name of a precision that networks are trained and asked in.
    """
    name = _NAMES.get(precision, precision)
    if name not in _NAMES.values():
        raise ValueError(f"trainer.precision is {precision}; expected auto, {', '.join(_NAMES)}")
    return name


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context of a precision by Lightning's name, where the hardware is fast at it; else of float32."""
    dtype = _low(device, precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def cast_weights(network: torch.nn.Module, device: torch.device, precision: str) -> None:
    """Cast once what `autocast` would cast at every call: the network says the same to the last bit, sooner and from less memory.

    Args:
        network: One that is no longer trained.
        device: Where it computes.
        precision: Lightning's name of it.
    """
    if dtype := _low(device, precision):
        for module in network.modules():
            if type(module) in _CAST_LAYERS:
                module.to(dtype)


def memory_format(ndim: int) -> torch.memory_format:
    """The channels-last format of images `[B, C, *S]` with `ndim` axes in all."""
    return torch.channels_last if ndim == 4 else torch.channels_last_3d


def _low(device: torch.device, precision: str) -> torch.dtype | None:
    """What is computed in besides float32, if anything."""
    return _DTYPES.get(precision) if precision == fast_precision(device.type) else None
