"""What runs the layers of an autoencoder, in words: for `lpkernel info`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lpkernel.autoencoder import layers, moments
from lpkernel.autoencoder.base import TorchAutoencoder
from lpkernel.autoencoder.fused import KINDS, NormSiLU, has_triton
from lpkernel.autoencoder.upsampling import FoldedUpsample
from lpkernel.limits import INT16_CODES
from lpkernel.triton_kernels import configs


def described(autoencoder: Any) -> dict[str, str]:
    """A line each: dtype, images (at a time), convolutions, GroupNorm, SiLU, decoder, torch.compile.

    A single line for a plug-in of another kind.
    """
    if not isinstance(autoencoder, TorchAutoencoder):
        return {"layers": f"not known: {type(autoencoder).__name__} is not a TorchAutoencoder"}
    network: nn.Module = autoencoder.network
    on_cpu = autoencoder.device.type == "cpu"
    dtypes = [str(kind).removeprefix("torch.") for kind in (autoencoder.dtype, autoencoder.encoder_dtype)]
    fixed = f"batches of {autoencoder.batch}, the last one filled up"
    return {
        "dtype": f"decoder {dtypes[0]}, encoder {dtypes[1]}; channels-last",
        "images": f"up to {autoencoder.at_a_time} side by side, each by itself" if on_cpu else fixed,
        "convolutions": _convolutions(network, on_cpu),
        "GroupNorm": _norms(network, on_cpu, autoencoder.dtype),
        "SiLU": _activations(network, on_cpu),
        "decoder": _decoder(autoencoder),
        "torch.compile": f"{'yes' if autoencoder.compiling.compiled else 'no'}: {autoencoder.compiling.reason}",
    }


def _decoder(autoencoder: TorchAutoencoder) -> str:
    pipeline = autoencoder.pipeline
    if pipeline is None:
        return "layer by layer"
    graph = (
        f"launched kernel by kernel ({pipeline.why_no_graph})" if pipeline.why_no_graph else "one CUDA graph a batch"
    )
    book = autoencoder.codebook
    sent = "latents as float32" if book is None else f"codes as int{16 if len(book) <= INT16_CODES else 32}"
    return f"{graph}; {sent} sent there, bytes returned through pinned memory during the next batch"


def _of(network: nn.Module, *kinds: type[nn.Module]) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, kinds)]


def _convolutions(network: nn.Module, on_cpu: bool) -> str:
    every, settled = _of(network, nn.Conv2d), _of(network, layers.Convolution)
    if not on_cpu:
        return f"{len(every)} by torch" + _folded(network)
    if not torch.backends.mkldnn.is_available():
        return f"{len(every)} by torch, which has no oneDNN: threads may change the last bits"
    taken = sum(layers.by_onednn(module.weight.dtype) for module in settled)
    rest = len(every) - taken
    why = " (of another dtype, or not padded with zeros): threads may change the last bits"
    return f"{taken} by oneDNN" + (f", {rest} by torch{why}" if rest else "") + _folded(network)


def _folded(network: nn.Module) -> str:
    count = len(_of(network, FoldedUpsample))
    return f"; {count} of them folded with the upsampling before" if count else ""


def _norms(network: nn.Module, on_cpu: bool, dtype: torch.dtype) -> str:
    every = _of(network, nn.GroupNorm)
    if on_cpu:
        if reasons := moments.reasons():
            return f"{len(every)} by torch and NumPy: {'; '.join(reasons)}"
        return f"{len(every)} by the compiled code"
    fused = [module for module in every if isinstance(module, NormSiLU)]
    if not has_triton():
        return f"{len(every)} by torch, since triton is not installed"
    if dtype not in KINDS:
        return f"{len(every)} by torch, since Triton's has no {str(dtype).removeprefix('torch.')}"
    narrow = [module for module in fused if configs.norm(module.num_channels, module.num_groups)]
    with_silu = sum(module.silu for module in narrow)
    rest = len(every) - len(narrow)
    wide = f", {rest} by torch, with too many channels for the kernel" if rest else ""
    return f"{len(narrow)} by Triton, {with_silu} of them fused with SiLU{wide}"


def _activations(network: nn.Module, on_cpu: bool) -> str:
    every = len(_of(network, nn.SiLU))
    if not on_cpu:
        return f"{every} by torch"
    in_place = sum(module.silu for module in _of(network, NormSiLU))
    every += in_place
    return f"{every} by torch, by whole vectors, {in_place} of them in place" if every else "none"
