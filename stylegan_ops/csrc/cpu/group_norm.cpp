// Group normalization, an affine map and SiLU in one pass, and their derivatives in another.
//
// Per channel, with m and s the mean and the reciprocal deviation of a group of x + before, z = factor * n + offset of
// n = (x + before - m) * s, where factor = weight * (1 + scale) and offset = bias * (1 + scale) + shift; y = silu(z).
#include <algorithm>
#include <cmath>
#include <vector>

#include "element.h"
#include "elementary.h"
#include "parallel.h"

namespace stylegan_ops {
namespace {

constexpr int kSums = 16;  // partial sums, so that additions become vector code

// Adds up term(i) for i in [0, count): in float32 at most 64 at a time.
template <typename Term>
inline double sum_of(int64_t count, Term term) {
    double total = 0;
    int64_t i = 0;
    while (i + kSums <= count) {
        float sums[kSums] = {};
        const int64_t end = std::min(count / kSums * kSums, i + 64 * kSums);
        for (; i < end; i += kSums) {
            for (int lane = 0; lane < kSums; ++lane) sums[lane] += term(i + lane);
        }
        for (int half = kSums / 2; half > 0; half /= 2) {
            for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
        }
        total += double(sums[0]);
    }
    for (; i < count; ++i) total += double(term(i));
    return total;
}

// exp(-z) where it neither overflows nor vanishes, beyond as if z were there: of SiLU and its slope, that is no more
// than 1e-36 away.
inline float exp_of_negative(float z) {
    const float bounded = z < -87.0f ? 87.0f : (z > 87.0f ? -87.0f : -z);
    return exponential_within(bounded);
}

inline float at(const void* values, int64_t index, float otherwise) {
    return values == nullptr ? otherwise : static_cast<const float*>(values)[index];
}

// What maps the pixels of one channel of one image.
struct Channel {
    float mean;  // less what is added before
    float inverse;
    float factor;
    float offset;
    float outer;  // 1 + scale

    Channel(const GroupNormArgs& args, int64_t image, int64_t channel, float group_mean, float group_inverse) {
        const int64_t index = image * args.channels + channel;
        outer = 1.0f + at(args.scale, index, 0.0f);
        mean = group_mean - at(args.before, index, 0.0f);
        inverse = group_inverse;
        factor = static_cast<const float*>(args.weight)[channel] * outer;
        offset = static_cast<const float*>(args.bias)[channel] * outer + at(args.shift, index, 0.0f);
    }

    float normalized(float x) const { return (x - mean) * inverse; }
};

// The pass over one group: statistics while it comes into the cache, then results.
void normalize_group(const GroupNormArgs& args, int64_t image, int64_t group) {
    const int64_t channels = args.channels / args.groups, size = args.size;
    const int64_t first = group * channels, begin = (image * args.channels + first) * size;
    const float* const x = static_cast<const float*>(args.x) + begin;
    float* const y = static_cast<float*>(args.y) + begin;
    double total = sum_of(channels * size, [=](int64_t i) { return x[i]; });
    for (int64_t c = 0; c < channels; ++c) {
        total += double(at(args.before, image * args.channels + first + c, 0.0f)) * double(size);
    }
    const double count = double(channels) * double(size), mean = total / count;
    double squares = 0;
    for (int64_t c = 0; c < channels; ++c) {
        const float* const row = x + c * size;
        const float center = float(mean - double(at(args.before, image * args.channels + first + c, 0.0f)));
        squares += sum_of(size, [=](int64_t i) { return (row[i] - center) * (row[i] - center); });
    }
    const float inverse = float(1.0 / std::sqrt(squares / count + args.eps));
    static_cast<float*>(args.mean)[image * args.groups + group] = float(mean);
    static_cast<float*>(args.inverse)[image * args.groups + group] = inverse;
    for (int64_t c = 0; c < channels; ++c) {
        const Channel map(args, image, first + c, float(mean), inverse);
        const float* __restrict row = x + c * size;
        float* __restrict out = y + c * size;
        for (int64_t i = 0; i < size; ++i) {
            const float z = map.factor * map.normalized(row[i]) + map.offset;
            out[i] = z / (1.0f + exp_of_negative(z));
        }
    }
}

// Of one channel of one image: sums over pixels of gradients of z, and of those times n; and of n.
struct Sums {
    double gradient, product, normalized;
};

// Writes the gradient of x, and into `sums`, one for each channel of each image, what all other gradients are made of.
void differentiate_group(const GroupNormArgs& args, int64_t image, int64_t group, Sums* sums) {
    const int64_t channels = args.channels / args.groups, size = args.size;
    const int64_t first = group * channels, begin = (image * args.channels + first) * size;
    const float* const x = static_cast<const float*>(args.x) + begin;
    const float* const dy = static_cast<const float*>(args.dy) + begin;
    float* const dx = static_cast<float*>(args.y) + begin;
    const float mean = static_cast<const float*>(args.mean)[image * args.groups + group];
    const float inverse = static_cast<const float*>(args.inverse)[image * args.groups + group];
    sums += image * args.channels + first;
    double gradient = 0, product = 0;
    for (int64_t c = 0; c < channels; ++c) {
        const Channel map(args, image, first + c, mean, inverse);
        const float* __restrict row = x + c * size;
        const float* __restrict dy_row = dy + c * size;
        float* __restrict dz = dx + c * size;
        for (int64_t i = 0; i < size; ++i) {
            const float z = map.factor * map.normalized(row[i]) + map.offset;
            const float e = exp_of_negative(z), s = 1.0f / (1.0f + e);
            dz[i] = dy_row[i] * (s + z * (e * s) * s);
        }
        sums[c].gradient = sum_of(size, [=](int64_t i) { return dz[i]; });
        sums[c].product = sum_of(size, [=](int64_t i) { return dz[i] * map.normalized(row[i]); });
        sums[c].normalized =
            args.dbefore == nullptr ? 0 : sum_of(size, [=](int64_t i) { return map.normalized(row[i]); });
        gradient += double(map.factor) * sums[c].gradient;
        product += double(map.factor) * sums[c].product;
    }
    const double count = double(channels) * double(size);
    gradient /= count;
    product /= count;
    for (int64_t c = 0; c < channels; ++c) {
        const Channel map(args, image, first + c, mean, inverse);
        const float* __restrict row = x + c * size;
        float* __restrict dz = dx + c * size;
        const float direct = map.factor * inverse, along = -inverse * float(product);
        const float constant = -inverse * float(gradient);
        for (int64_t i = 0; i < size; ++i) dz[i] = direct * dz[i] + along * map.normalized(row[i]) + constant;
        const int64_t index = image * args.channels + first + c;
        if (args.dbefore != nullptr) {
            static_cast<float*>(args.dbefore)[index] =
                float(double(inverse) * (double(map.factor) * sums[c].gradient - product * sums[c].normalized -
                                         gradient * double(size)));
        }
        if (args.dscale != nullptr) {
            static_cast<float*>(args.dscale)[index] =
                float(double(static_cast<const float*>(args.weight)[first + c]) * sums[c].product +
                      double(static_cast<const float*>(args.bias)[first + c]) * sums[c].gradient);
        }
        if (args.dshift != nullptr) static_cast<float*>(args.dshift)[index] = float(sums[c].gradient);
        sums[c].gradient *= double(map.outer);
        sums[c].product *= double(map.outer);
    }
}

}  // namespace
}  // namespace stylegan_ops

SGO_EXPORT int stylegan_ops_group_norm_silu(const GroupNormArgs* args) {
    using namespace stylegan_ops;
    const int64_t groups = args->batch * args->groups, elements = args->batch * args->channels * args->size;
    expect_writes(args->y, elements * int64_t(sizeof(float)));
    // Each element takes as long as several of what kGrain counts.
    if (args->dy == nullptr) {
        parallel_blocks(groups, elements * 4, args->num_threads, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; ++i) normalize_group(*args, i / args->groups, i % args->groups);
        });
        return 0;
    }
    std::vector<Sums> sums(size_t(args->batch * args->channels));
    parallel_blocks(groups, elements * 4, args->num_threads, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            differentiate_group(*args, i / args->groups, i % args->groups, sums.data());
        }
    });
    for (int64_t c = 0; c < args->channels; ++c) {
        double weight = 0, bias = 0;
        for (int64_t image = 0; image < args->batch; ++image) {
            weight += sums[size_t(image * args->channels + c)].product;
            bias += sums[size_t(image * args->channels + c)].gradient;
        }
        static_cast<float*>(args->dweight)[c] = float(weight);
        static_cast<float*>(args->dbias)[c] = float(bias);
    }
    return 0;
}
