"""GPU kernels executed and checked without a GPU.

- build.cuda_module(): the CUDA extension on host memory, from source or from nvcc's PTX;
- triton_driver.install(): Triton kernels as PTX on the CPU;
- simt/: the runtime of both, and what it checks (simt.h); ptx/: the translator of PTX to C++;
- resources: registers, spills, shared memory and occupancy; budgets.json what is allowed (scripts/kernel_report.py);
- needs: skipping, or failing, where nvcc or Triton is missing.
"""
