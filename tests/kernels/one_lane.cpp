// The kernels without vectors, with which compare.cpp compares the others.
#define LPKERNEL_ONE_LANE
#define LPKERNEL_TABLE kernels_one_lane
#define LPKERNEL_ISA_NAME "one lane"
#include "cpu/kernels_body.h"
