// Work in blocks that threads share. Blocks do not depend on the number of threads, so neither do results.
#ifndef STYLEGAN_OPS_CPU_PARALLEL_H
#define STYLEGAN_OPS_CPU_PARALLEL_H

#include <algorithm>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace stylegan_ops {

// Elements that are worth waking up a thread for.
constexpr int64_t kGrain = 32768;

// Calls run(begin, end) for parts of [0, blocks) that cover it, from at most num_threads threads.
template <typename Run>
void parallel_blocks(int64_t blocks, int64_t elements, int num_threads, Run run) {
#ifdef _OPENMP
    const int64_t threads = std::min({int64_t(num_threads), blocks, (elements + kGrain - 1) / kGrain});
    if (threads > 1) {
#pragma omp parallel for num_threads(int(threads)) schedule(static)
        for (int64_t part = 0; part < threads; ++part) run(blocks * part / threads, blocks * (part + 1) / threads);
        return;
    }
#endif
    run(int64_t(0), blocks);
}

// Ask for huge pages where a large result goes, if nobody has touched that memory yet: its page faults would cost
// more than the arithmetic.
inline void expect_writes(void* begin, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t huge = uintptr_t(1) << 21;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + huge - 1) & ~(huge - 1);
    const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + uintptr_t(bytes)) & ~(huge - 1);
    if (first >= last) return;
    unsigned char resident = 0;
    const bool known = mincore(reinterpret_cast<void*>(last - huge), 1, &resident) == 0;
    if (known && (resident & 1) == 0) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)begin;
    (void)bytes;
#endif
}

}  // namespace stylegan_ops

#endif
