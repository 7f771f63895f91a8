// One of every operation that kernels here may use, so that the test runtime and the translated PTX can be compared.

#pragma once

#include "cuda/portable.cuh"

namespace lpkernel::cuda {

inline constexpr int kOperations = 64;

struct OperationArgs {
    const std::int64_t* values;  // (threads)
    std::uint64_t* results;      // (threads, kOperations); what is not used stays
    std::uint32_t* counters;     // (8), zero before
};

__global__ void operations(const __grid_constant__ OperationArgs args) {
    const unsigned me = threadIdx.x, lane = me % 32;
    const std::int64_t wide = args.values[me], other = args.values[(me * 7 + 3) % blockDim.x];
    const int a = static_cast<int>(wide), b = static_cast<int>(other >> 7);
    const unsigned u = static_cast<unsigned>(a), v = static_cast<unsigned>(b);
    const float x = static_cast<float>(a % 4096) / 16.0f, y = static_cast<float>(b % 512) / 8.0f;
    std::uint64_t* out = args.results + static_cast<std::size_t>(me) * kOperations;
    const auto put = [&](auto value) { *out++ = static_cast<std::uint64_t>(value); };

    put(u + v);
    put(u * v);
    put(static_cast<std::int64_t>(a) * b);
    put(static_cast<std::uint64_t>(u) * v);
    put(__mulhi(a, b));
    put(__umulhi(u, v));
    put(__umul64hi(static_cast<unsigned long long>(wide), static_cast<unsigned long long>(other)));
    put(b != 0 && b != -1 ? a / b : 0);
    put(b != 0 && b != -1 ? a % b : 0);
    put(v != 0 ? u / v : 0);
    put(other != 0 ? static_cast<std::uint64_t>(wide) % static_cast<std::uint64_t>(other) : 0);
    put(min(a, b));
    put(max(u, v));
    put(min(wide, other));
    put(a >> (v & 31));
    put(u >> (v & 31));
    put(static_cast<std::uint64_t>(wide) << (v & 63));
    put(wide >> (v & 63));
    put((u >> 5) & 0x3ff);
    put((a << 9) >> 20);
    put(__popc(u) + __popcll(static_cast<unsigned long long>(wide)));
    put(__clz(a) + 100 * __ffs(a));
    put(__clzll(wide) + 100 * __ffsll(wide));
    put(__brev(u));
    put(__byte_perm(u, v, 0x7152));
    put(__funnelshift_l(u, v, 11));
    put(__funnelshift_r(u, v, v));
    put(__dp4a(a, b, 5));
    put(__dp4a(u, v, 5u));
    put(__dp2a_lo(a, b, 7));
    put(__dp2a_hi(u, v, 7u));
    put(__vadd2(u, v));
    put(__vsub2(u, v));
    put(__vminu2(u, v));
    put((u & v) | (~u & (v ^ 0x55u)));

    put(__float_as_uint(x + y));
    put(__float_as_uint(x * y - x));  // not fused
    put(__float_as_uint(__fmaf_rn(x, y, 0.3f)));
    put(__float_as_uint(y != 0 ? __fdiv_rn(x, y) : 0));
    put(__float_as_uint(sqrtf(x * x)));
    put(__float_as_uint(fmaxf(x, y) - fminf(x, -y)));
    put(static_cast<int>(x));
    put(static_cast<int>(floorf(y)));
    put(__float_as_uint(static_cast<float>(wide)));
    put(static_cast<std::int64_t>(static_cast<double>(wide) / 3.0));
    put(x < y ? 1 : x == y ? 2 : 3);

    put(__shfl_sync(~0u, a, static_cast<int>(v % 32)));
    put(__shfl_up_sync(~0u, u, 3));
    put(__shfl_down_sync(~0u, x, 5) < y);
    put(__shfl_xor_sync(~0u, wide, 9));
    put(__shfl_sync(~0u, a, 3, 8));
    put(__ballot_sync(~0u, a > b));
    put(__any_sync(~0u, a == b) * 2 + __all_sync(~0u, a != b));
    put(__match_any_sync(~0u, u % 5));
    put(__reduce_min_sync(~0u, u));
    put(__reduce_max_sync(~0u, a));
    put(__reduce_add_sync(~0u, u));
    put(__reduce_xor_sync(~0u, u));
    put(lane < 16 ? __reduce_or_sync(0x0000ffffu, u) : __reduce_and_sync(0xffff0000u, u));
    put(__syncthreads_count(a > 0));
    put(__syncthreads_or(a == 0) + 2 * __syncthreads_and(a != 1));

    atomicAdd(args.counters, u);
    atomicMin(reinterpret_cast<int*>(args.counters + 1), a);
    atomicMax(args.counters + 2, v);
    atomicOr(args.counters + 3, u & 0xf0f0u);
    atomicCAS(args.counters + 4, 0u, 77u);
    atomicAdd(args.counters + 5, 1u);
    atomicAdd(reinterpret_cast<unsigned long long*>(args.counters + 6), static_cast<unsigned long long>(wide));
    __syncthreads();
    put(load_shared_by_blocks(args.counters + 5));
    put(load_shared_by_blocks(reinterpret_cast<const std::uint16_t*>(args.counters + 5)));
}

}  // namespace lpkernel::cuda
