// Attention between the pixels of images, whose queries, keys and values lie channel by channel, as convolutions leave
// them. Products of a few queries with all keys are as much as is ever in memory.
#include <algorithm>
#include <cmath>

#include "elementary.h"
#include "parallel.h"
#include "vec.h"

namespace stylegan_ops {
namespace {

// One head of one image.
struct Head {
    int64_t channels, length;
    float scale;
    const float *query, *key, *value;  // [channels][length], rows of which are 3 * length apart

    Head(const AttentionArgs& args, int64_t index)
        : channels(args.channels), length(args.length), scale(float(args.scale)) {
        query = static_cast<const float*>(args.qkv) + index * 3 * channels * length;
        key = query + length;
        value = key + length;
    }
};

// to[row * step + column] (+)= sum over k of left[k * left_k + row * left_r] * right[k * right_k + column] for `rows` rows
// and kColumns columns
inline void product(const float* left, int64_t left_k, int64_t left_r, const float* right, int64_t right_k,
                    int64_t count, int64_t rows, float* to, int64_t step, bool add = false) {
    for (int64_t row = 0; row < rows; row += kRows) {
        Vec sums[kRows][2] = {};
        if (add) {
            for (int r = 0; r < kRows; ++r) {
                for (int v = 0; v < 2; ++v) sums[r][v] = load_vec(to + (row + r) * step + v * kLanes);
            }
        }
        multiply<2>(left + row * left_r, left_k, left_r, right, right_k, count, sums);
        for (int r = 0; r < kRows; ++r) {
            for (int v = 0; v < 2; ++v) store_vec(to + (row + r) * step + v * kLanes, sums[r][v]);
        }
    }
}

// exp(scale * (products with keys - their maximum)), [length][kColumns], of kColumns queries, and one over their sums.
void weigh(const Head& head, int64_t first, float* __restrict weights, float* __restrict inverse) {
    const int64_t row = 3 * head.length;
    product(head.key, row, 1, head.query + first, row, head.channels, head.length, weights, kColumns);
    float largest[kColumns], sums[kColumns] = {};
    std::fill(largest, largest + kColumns, -INFINITY);
    for (int64_t k = 0; k < head.length; ++k) {
        const float* const w = weights + k * kColumns;
        for (int64_t q = 0; q < kColumns; ++q) largest[q] = largest[q] < w[q] ? w[q] : largest[q];
    }
    for (int64_t k = 0; k < head.length; ++k) {
        float* const w = weights + k * kColumns;
        for (int64_t q = 0; q < kColumns; ++q) {
            w[q] = exponential(head.scale * (w[q] - largest[q])).exp;
            sums[q] += w[q];
        }
    }
    for (int64_t q = 0; q < kColumns; ++q) inverse[q] = 1.0f / sums[q];
}

void attend(const Head& head, float* out, float* weights) {
    for (int64_t first = 0; first < head.length; first += kColumns) {
        float inverse[kColumns];
        weigh(head, first, weights, inverse);
        product(head.value, 1, 3 * head.length, weights, kColumns, head.length, head.channels, out + first,
                head.length);
        for (int64_t c = 0; c < head.channels; ++c) {
            float* const row = out + c * head.length + first;
            for (int64_t q = 0; q < kColumns; ++q) row[q] *= inverse[q];
        }
    }
}

// from [length][kColumns] to [kColumns][length]
void transpose_all(const float* from, float* to, int64_t length) {
    for (int64_t k = 0; k < length; k += kLanes) {
        for (int64_t q = 0; q < kColumns; q += kLanes) {
            transpose(from + k * kColumns + q, kColumns, to + q * length + k, length);
        }
    }
}

// The gradient of queries, keys and values, which lies as they do, from that of the result.
void differentiate(const Head& head, const float* dout, float* dqkv, float* memory) {
    const int64_t length = head.length, channels = head.channels, row = 3 * length, size = length * kColumns;
    float* const weights = memory;
    float* const gradients = memory + size;
    float* const transposed = memory + 2 * size;
    for (int64_t first = 0; first < length; first += kColumns) {
        float inverse[kColumns], means[kColumns] = {};
        weigh(head, first, weights, inverse);
        product(head.value, row, 1, dout + first, length, channels, length, gradients, kColumns);
        for (int64_t k = 0; k < length; ++k) {
            float* __restrict const w = weights + k * kColumns;
            const float* __restrict const g = gradients + k * kColumns;
            for (int64_t q = 0; q < kColumns; ++q) {
                w[q] *= inverse[q];
                means[q] += w[q] * g[q];
            }
        }
        for (int64_t k = 0; k < length; ++k) {
            const float* __restrict const w = weights + k * kColumns;
            float* __restrict const g = gradients + k * kColumns;
            for (int64_t q = 0; q < kColumns; ++q) g[q] = head.scale * w[q] * (g[q] - means[q]);
        }
        product(head.key, 1, row, gradients, kColumns, length, channels, dqkv + first, row);
        transpose_all(gradients, transposed, length);
        for (int64_t k = 0; k < length; k += kColumns) {
            product(head.query + first, 1, row, transposed + k, length, kColumns, channels, dqkv + length + k, row,
                    first > 0);
        }
        transpose_all(weights, transposed, length);
        for (int64_t k = 0; k < length; k += kColumns) {
            product(dout + first, 1, length, transposed + k, length, kColumns, channels, dqkv + 2 * length + k, row,
                    first > 0);
        }
    }
}

}  // namespace
}  // namespace stylegan_ops

// 1 if the numbers of channels or of pixels do not fit the vectors.
SGO_EXPORT int stylegan_ops_attention(const AttentionArgs* args) {
    using namespace stylegan_ops;
    if (args->length % kColumns != 0 || args->channels % kRows != 0) return 1;
    const int64_t size = args->channels * args->length, panel = args->length * kColumns;
    const int64_t work = args->heads * args->length * args->length;
    parallel_blocks(args->heads, work, args->num_threads, [&](int64_t first, int64_t last) {
        const Buffer memory((args->dout == nullptr ? 1 : 3) * panel);
        for (int64_t i = first; i < last; ++i) {
            const Head head(*args, i);
            if (args->dout == nullptr) {
                attend(head, static_cast<float*>(args->out) + i * size, memory.get());
            } else {
                differentiate(head, static_cast<const float*>(args->dout) + i * size,
                              static_cast<float*>(args->out) + i * 3 * size, memory.get());
            }
        }
    });
    return 0;
}
