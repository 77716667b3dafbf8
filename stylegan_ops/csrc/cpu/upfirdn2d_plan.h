// How upfirdn2d is computed without ever multiplying by the zeros that upsampling inserts.
//
// Along each axis, outputs whose filter meets the same taps (those at the same position between two inputs) form a
// phase: `period` phases take turns, and output `phase + period * j` is an ordinary correlation of the phase's taps
// with the inputs from `base + step * j` on.
#ifndef STYLEGAN_OPS_CPU_UPFIRDN2D_PLAN_H
#define STYLEGAN_OPS_CPU_UPFIRDN2D_PLAN_H

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "element.h"
#include "parallel.h"

namespace stylegan_ops {

struct Phase {
    int64_t base;       // First input of output 0 of the phase.
    int64_t count;      // Outputs of the phase.
    int64_t first_tap;  // The phase uses taps first_tap, first_tap + up, ...
    int64_t taps;
};

struct Axis {
    int64_t up;
    int64_t period;
    int64_t step;
    std::vector<Phase> phases;
    int64_t most_taps;
    int64_t first, last;                // Inputs that some output needs, from `first` to before `last`, and
    int64_t inside_first, inside_last;  // those of them that the image has.

    // The first input of an output, which the image may not have.
    int64_t input(int64_t output) const { return phases[output % period].base + output / period * step; }
    bool each_phase_has(int64_t taps) const {
        return std::all_of(phases.begin(), phases.end(), [=](const Phase& phase) { return phase.taps == taps; });
    }
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline Axis plan_axis(int64_t in_size, int64_t out_size, int64_t taps, int64_t up, int64_t down, int64_t pad) {
    const int64_t common = std::gcd(up, down);
    Axis axis{up, up / common, down / common, {}, 0, 0, 0, 0, 0};
    for (int64_t phase = 0; phase < std::min(axis.period, out_size); ++phase) {
        const int64_t position = phase * down - pad;  // Of the filter's first tap, among inputs and inserted zeros.
        const int64_t first_tap = ((-position) % up + up) % up;
        const int64_t phase_taps = first_tap < taps ? ceil_div(taps - first_tap, up) : 0;
        const int64_t count = ceil_div(out_size - phase, axis.period);
        axis.phases.push_back({(position + first_tap) / up, count, first_tap, phase_taps});
        axis.most_taps = std::max(axis.most_taps, phase_taps);
    }
    axis.first = axis.last = axis.phases[0].base;
    for (const Phase& phase : axis.phases) {
        const int64_t last = phase.base + (phase.count - 1) * axis.step;
        axis.first = std::min(axis.first, phase.base);
        axis.last = std::max(axis.last, last + std::max<int64_t>(phase.taps, 1));
    }
    axis.inside_first = std::clamp<int64_t>(0, axis.first, axis.last);
    axis.inside_last = std::clamp<int64_t>(in_size, axis.inside_first, axis.last);
    return axis;
}

// The filter as correlations take it: the outer product of `column` and one row, or all its rows.
struct Filter {
    bool separable;
    std::vector<double> column;  // Empty unless separable.
    std::vector<std::vector<double>> rows;
};

// Write filter[k][l] as column[k] * row[l] if that holds to `tolerance` of its largest tap.
inline bool factor(const std::vector<std::vector<double>>& filter, double tolerance, std::vector<double>& column,
                   std::vector<double>& row) {
    size_t pivot_k = 0, pivot_l = 0;
    for (size_t k = 0; k < filter.size(); ++k) {
        for (size_t l = 0; l < filter[k].size(); ++l) {
            if (std::abs(filter[k][l]) > std::abs(filter[pivot_k][pivot_l])) pivot_k = k, pivot_l = l;
        }
    }
    const double pivot = filter[pivot_k][pivot_l];
    for (const auto& taps : filter) column.push_back(taps[pivot_l]);
    for (double tap : filter[pivot_k]) row.push_back(pivot == 0 ? 0 : tap / pivot);
    for (size_t k = 0; k < filter.size(); ++k) {
        for (size_t l = 0; l < row.size(); ++l) {
            if (!(std::abs(filter[k][l] - column[k] * row[l]) <= tolerance * std::abs(pivot))) return false;
        }
    }
    return true;
}

inline Filter read_filter(const Upfirdn2dArgs& args) {
    const float* const taps = static_cast<const float*>(args.filter);
    const int64_t height = args.filter_height, width = args.filter_width;
    if (args.separable) {
        std::vector<double> row(taps, taps + width);
        if (!args.flip) std::reverse(row.begin(), row.end());
        Filter filter{true, row, {row}};
        for (double& tap : filter.column) tap *= args.gain;
        return filter;
    }
    std::vector<std::vector<double>> rows;
    for (int64_t k = 0; k < height; ++k) {
        rows.emplace_back(taps + k * width, taps + (k + 1) * width);
        if (!args.flip) std::reverse(rows.back().begin(), rows.back().end());
        for (double& tap : rows.back()) tap *= args.gain;
    }
    if (!args.flip) std::reverse(rows.begin(), rows.end());
    // Outer products that were rounded to float32 are off by up to 1.5 units in the last place.
    const double tolerance = args.dtype == SGO_FLOAT64 ? 1e-15 : 2e-7;
    std::vector<double> column, row;
    if (factor(rows, tolerance, column, row)) return {true, column, {row}};
    return {false, {}, rows};
}

// Taps of one filter row, by phase.
template <typename T>
using PhaseWeights = std::vector<std::vector<T>>;

template <typename T>
PhaseWeights<T> split(const std::vector<double>& taps, const Axis& axis) {
    PhaseWeights<T> weights;
    for (const Phase& phase : axis.phases) {
        weights.emplace_back();
        for (int64_t t = 0; t < phase.taps; ++t) weights.back().push_back(T(taps[phase.first_tap + t * axis.up]));
    }
    return weights;
}

// What all rows of a call share. Rows hold `pixel` values per column: 1, or all channels of channels_last images.
template <typename T>
struct Plan {
    Axis x, y;
    bool separable;
    PhaseWeights<T> column;
    std::vector<PhaseWeights<T>> rows;
    int64_t pixel;
    int64_t planes;  // Images, or channels of them, that are filtered one by one.
};

template <typename T>
Plan<T> make_plan(const Upfirdn2dArgs& args) {
    const Filter filter = read_filter(args);
    const int64_t filter_height = args.separable ? args.filter_width : args.filter_height;
    Plan<T> plan;
    plan.x = plan_axis(args.x_width, args.y_width, args.filter_width, args.up_x, args.down_x, args.pad_x0);
    plan.y = plan_axis(args.x_height, args.y_height, filter_height, args.up_y, args.down_y, args.pad_y0);
    plan.separable = filter.separable;
    if (filter.separable) plan.column = split<T>(filter.column, plan.y);
    for (const auto& row : filter.rows) plan.rows.push_back(split<T>(row, plan.x));

    const bool channels_last = args.x_stride[3] != 1;
    plan.pixel = channels_last ? args.channels : 1;
    plan.planes = channels_last ? args.batch : args.batch * args.channels;
    return plan;
}

// out[i] = (or +=) sum over t of weights[t] * sources[t][i]
template <int Taps, typename T>
inline void weighted_sum(const T* const* sources, const T* weights, int64_t count, T* __restrict out,
                         bool accumulate) {
    const T* const s0 = sources[0];
    const T* const s1 = sources[Taps > 1 ? 1 : 0];
    const T* const s2 = sources[Taps > 2 ? 2 : 0];
    const T* const s3 = sources[Taps > 3 ? 3 : 0];
    const T w0 = weights[0], w1 = weights[Taps > 1 ? 1 : 0], w2 = weights[Taps > 2 ? 2 : 0],
            w3 = weights[Taps > 3 ? 3 : 0];
    const auto at = [=](int64_t i) {
        T sum = w0 * s0[i];
        if constexpr (Taps > 1) sum += w1 * s1[i];
        if constexpr (Taps > 2) sum += w2 * s2[i];
        if constexpr (Taps > 3) sum += w3 * s3[i];
        return sum;
    };
    if (accumulate) {
        for (int64_t i = 0; i < count; ++i) out[i] += at(i);
    } else {
        for (int64_t i = 0; i < count; ++i) out[i] = at(i);
    }
}

template <typename T>
void combine(const T* const* sources, const T* weights, int64_t taps, int64_t count, T* out, bool accumulate) {
    for (int64_t t = 0; t < taps; t += 4) {
        const bool add = accumulate || t > 0;
        switch (std::min(taps - t, int64_t(4))) {
            case 1: weighted_sum<1>(sources + t, weights + t, count, out, add); break;
            case 2: weighted_sum<2>(sources + t, weights + t, count, out, add); break;
            case 3: weighted_sum<3>(sources + t, weights + t, count, out, add); break;
            default: weighted_sum<4>(sources + t, weights + t, count, out, add); break;
        }
    }
    if (taps == 0 && !accumulate) std::fill(out, out + count, T(0));
}

}  // namespace stylegan_ops

#endif
