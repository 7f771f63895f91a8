"""Triton kernels of lpkernel, installed as lpkernel.triton_kernels."""

if __name__ == "triton_kernels":
    # On a path that begins at the repository root this folder would stand in for another project's package.
    raise ImportError("this triton_kernels belongs to lpkernel: import lpkernel.triton_kernels")
