#if defined(__x86_64__)  // setup.py adds the flags of this instruction set
#define LPKERNEL_TABLE kernels_avx512
#define LPKERNEL_ISA_NAME "avx512"
#include "cpu/kernels_body.h"
#endif
