#define LPKERNEL_TABLE kernels_baseline
#define LPKERNEL_ISA_NAME "baseline"
#include "cpu/kernels_body.h"
