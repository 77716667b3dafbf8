// upfirdn2d of small planes with separable filters; their rows are too short for RowFilter to be quick at.
//
// Horizontally, a block of neighbouring outputs is a vector: the sum, over the few inputs that it depends on, of the
// input times the vector of its weights. So borders, padding and resampling are all in the weights, which every row of
// every plane shares. Vertically, outputs are sums of such rows, between rows of zeros for the padding.
//
// Where neighbouring outputs begin at neighbouring inputs, there is a vector of inputs per tap instead, and weights are
// zero for what such a vector has of the rows before and behind.
//
// Some weights are zero, so that an input that is infinite or NaN makes NaN of whole blocks near it.
#ifndef STYLEGAN_OPS_CPU_UPFIRDN2D_SMALL_H
#define STYLEGAN_OPS_CPU_UPFIRDN2D_SMALL_H

#include <algorithm>
#include <cstring>
#include <vector>

#include "element.h"
#include "parallel.h"
#include "upfirdn2d_plan.h"

#if defined(__GNUC__)  // And Clang: for vectors as a type.

namespace stylegan_ops {

template <typename T, int Lanes>
struct Vector {
    typedef T Type __attribute__((vector_size(Lanes * sizeof(T))));
    static Type load(const T* from) {
        Type to;
        std::memcpy(&to, from, sizeof to);
        return to;
    }
    static void store(T* to, Type from) { std::memcpy(to, &from, sizeof from); }
};

// Neighbouring outputs of a row, as many as a vector has lanes, and what they depend on.
struct Block {
    int64_t column;   // The first output.
    int64_t input;    // The first input, and
    int64_t inputs;   // how many there are.
    int64_t weights;  // Where the first one's vector of weights is, and
    int64_t by_tap;   // where the vectors of the taps are, if outputs begin at neighbouring inputs.
    int64_t base;     // The input that the first output begins at, which may be outside.
};

template <typename T>
struct SmallPlan {
    std::vector<Block> blocks;  // The last two may overlap.
    std::vector<T> weights;
    int64_t taps;      // Vectors of inputs per block, or 0.
    int64_t products;  // The plan is incomplete where they exceed kMostProducts.
};

constexpr int kVectorBytes = 32;
template <typename T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

// More columns are quicker one vector of neighbours at a time, and with more rows, planes do not fit into the cache.
constexpr int64_t kSmallWidth = 32, kSmallHeight = 64;
// Vectors of weights for a row, twice those by tap; with more, RowFilter is as quick.
constexpr int64_t kMostProducts = 28;

template <typename T>
SmallPlan<T> make_small_plan(const Upfirdn2dArgs& args, const Plan<T>& plan, int lanes) {
    SmallPlan<T> small{{}, {}, 0, 0};
    const Axis& axis = plan.x;
    if (axis.period == 1 && axis.step == 1) small.taps = axis.phases[0].taps;
    for (int64_t begin = 0; begin < args.y_width; begin += lanes) {
        const int64_t column = std::min(begin, args.y_width - lanes);
        // Of the outputs in turn, the phase and the input that its first tap meets.
        const auto for_each_output = [&](auto visit) {
            int64_t phase = column % axis.period, start = column / axis.period * axis.step;
            for (int lane = 0; lane < lanes; ++lane) {
                visit(lane, axis.phases[phase], plan.rows[0][phase], start + axis.phases[phase].base);
                if (++phase == axis.period) phase = 0, start += axis.step;
            }
        };
        int64_t first = args.x_width, last = 0;
        for_each_output([&](int, const Phase& phase, const std::vector<T>&, int64_t base) {
            first = std::min(first, std::max<int64_t>(base, 0));
            last = std::max(last, std::min(base + phase.taps, args.x_width));
        });
        Block block{column, first, std::max<int64_t>(last - first, 0), int64_t(small.weights.size()), 0, 0};
        small.products += small.taps > 0 ? 2 * small.taps : block.inputs;
        if (small.products > kMostProducts) break;
        block.by_tap = block.weights + block.inputs * lanes;
        block.base = column + axis.phases[0].base;
        small.weights.resize(block.by_tap + small.taps * lanes, T(0));
        for_each_output([&](int lane, const Phase& phase, const std::vector<T>& taps, int64_t base) {
            for (int64_t t = std::max<int64_t>(0, -base); t < std::min(phase.taps, args.x_width - base); ++t) {
                small.weights[block.weights + (base + t - first) * lanes + lane] = taps[t];
                if (small.taps > 0) small.weights[block.by_tap + t * lanes + lane] = taps[t];
            }
        });
        small.blocks.push_back(block);
    }
    return small;
}

template <typename Element, int Lanes>
class SmallFilter {
    using T = typename Element::Math;
    using Stored = typename Element::Stored;
    using V = Vector<T, Lanes>;

  public:
    // Filters up to `together` planes at a time.
    SmallFilter(const Upfirdn2dArgs& args, const Plan<T>& plan, const SmallPlan<T>& small, int64_t together)
        : args_(args),
          plan_(plan),
          small_(small),
          rows_(plan.y.last - plan.y.first),
          filtered_((together * rows_ + 1) * args.y_width),
          inputs_(kSame ? 0 : together * args.x_height * args.x_width),
          results_(kSame ? 0 : together * args.y_height * args.y_width) {
        for (int64_t plane = 0; plane < together; ++plane) {
            for (int64_t row = 0; row < args.x_height; ++row) {
                const bool used = row >= plan.y.inside_first && row < plan.y.inside_last;
                targets_.push_back((used ? plane * rows_ + row - plan.y.first : together * rows_) * args.y_width);
            }
        }
    }

    // Compute planes [begin, end).
    void run(int64_t begin, int64_t end) {
        const int64_t planes = end - begin;
        const int64_t in = args_.x_height * args_.x_width, out = args_.y_height * args_.y_width;
        const Stored* const x = static_cast<const Stored*>(args_.x) + begin * in;
        Stored* const y = static_cast<Stored*>(args_.y) + begin * out;
        if constexpr (kSame) {
            filter_rows(x, planes * args_.x_height, begin * in, (plan_.planes - end) * in);
            filter_columns(planes, y);
        } else {
            for (int64_t i = 0; i < planes * in; ++i) inputs_[i] = Element::load(x[i]);
            filter_rows(inputs_.data(), planes * args_.x_height, 0, 0);
            filter_columns(planes, results_.data());
            for (int64_t i = 0; i < planes * out; ++i) y[i] = Element::store(results_[i]);
        }
    }

  private:
    static constexpr bool kSame = sizeof(T) == sizeof(Stored);
    // Rows that are computed at once, since a single sum would wait for each of its additions.
    static constexpr int kRows = 8;

    // All rows of x, with `before` values before them and `behind` values behind them that may be read too.
    void filter_rows(const T* x, int64_t rows, int64_t before, int64_t behind) {
        const int64_t width = args_.x_width;
        for (const Block& block : small_.blocks) {
            int64_t first = 0, last = 0;  // Rows whose vectors of inputs lie where one may read.
            if (small_.taps > 0) {
                first = std::clamp<int64_t>(ceil_div(std::max<int64_t>(-block.base - before, 0), width), 0, rows);
                const int64_t end = block.base + small_.taps - 1 + Lanes - width;  // Of what the last row reads.
                last = std::max(first, rows - ceil_div(std::max<int64_t>(end - behind, 0), width));
            }
            sum_inputs(x, block, 0, first);
            if (small_.taps == 4) {
                sum_taps<4>(x, block, first, last);
            } else {
                sum_taps<0>(x, block, first, last);
            }
            sum_inputs(x, block, last, rows);
        }
    }

    // Most as in filter_columns.
    template <int Most>
    void sum_taps(const T* x, const Block& block, int64_t row, int64_t last) {
        if (row >= last) return;
        const int64_t taps = Most == 0 ? small_.taps : Most;
        const T* const weights = small_.weights.data() + block.by_tap;
        T* const out = filtered_.data() + block.column;
        const T* from = x + row * args_.x_width + block.base;
        typename V::Type known[Most == 0 ? 1 : Most];
        for (int t = 0; t < Most; ++t) known[t] = V::load(weights + t * Lanes);
        for (; row < last; ++row, from += args_.x_width) {
            typename V::Type sum{};
            for (int64_t t = 0; t < taps; ++t) {
                sum += (Most == 0 ? V::load(weights + t * Lanes) : known[Most == 0 ? 0 : t]) * V::load(from + t);
            }
            V::store(out + targets_[row], sum);
        }
    }

    void sum_inputs(const T* x, const Block& block, int64_t row, int64_t rows) {
        const int64_t width = args_.x_width;
        const T* const weights = small_.weights.data() + block.weights;
        T* const out = filtered_.data() + block.column;
        for (; row + kRows <= rows; row += kRows) {
            typename V::Type s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{};
            // Three pointers, since eight would not leave enough registers, and compilers kept from making more.
            const T* a = x + row * width + block.input;
            const T *b = a + 3 * width, *c = a + 6 * width;
            for (int64_t i = 0; i < block.inputs; ++i, ++a, ++b, ++c) {
                __asm__("" : "+r"(a), "+r"(b), "+r"(c));
                const typename V::Type w = V::load(weights + i * Lanes);
                s0 += w * a[0], s1 += w * a[width], s2 += w * a[2 * width];
                s3 += w * b[0], s4 += w * b[width], s5 += w * b[2 * width];
                s6 += w * c[0], s7 += w * c[width];
            }
            const int64_t* const target = targets_.data() + row;
            V::store(out + target[0], s0), V::store(out + target[1], s1), V::store(out + target[2], s2);
            V::store(out + target[3], s3), V::store(out + target[4], s4), V::store(out + target[5], s5);
            V::store(out + target[6], s6), V::store(out + target[7], s7);
        }
        for (; row < rows; ++row) {
            typename V::Type sum{};
            const T* const a = x + row * width + block.input;
            for (int64_t i = 0; i < block.inputs; ++i) sum += V::load(weights + i * Lanes) * a[i];
            V::store(out + targets_[row], sum);
        }
    }

    // Most 0 stands for any number of taps; others know them when they are compiled.
    template <int Most>
    void filter_columns(const T* rows, const Phase& phase, const T* weights, T* target) {
        const int64_t width = args_.y_width, period = plan_.y.period, taps = Most == 0 ? phase.taps : Most;
        typename V::Type known[Most == 0 ? 1 : Most];
        for (int t = 0; t < Most; ++t) known[t] = typename V::Type{} + weights[t];
        const T* source = rows + (phase.base - plan_.y.first) * width;
        for (int64_t i = 0; i < phase.count; ++i) {
            for (const Block& block : small_.blocks) {
                typename V::Type sum{};
                for (int64_t t = 0; t < taps; ++t) {
                    const typename V::Type row = V::load(source + t * width + block.column);
                    sum += Most == 0 ? weights[t] * row : known[Most == 0 ? 0 : t] * row;
                }
                V::store(target + block.column, sum);
            }
            source += plan_.y.step * width;
            target += period * width;
        }
    }

    template <int Most>
    void filter_columns(int64_t planes, T* y) {
        for (int64_t plane = 0; plane < planes; ++plane) {
            for (size_t p = 0; p < plan_.y.phases.size(); ++p) {
                filter_columns<Most>(filtered_.data() + plane * rows_ * args_.y_width, plan_.y.phases[p],
                                     plan_.column[p].data(), y + (plane * args_.y_height + int64_t(p)) * args_.y_width);
            }
        }
    }

    void filter_columns(int64_t planes, T* y) {
        const std::vector<Phase>& phases = plan_.y.phases;
        const bool uniform = std::all_of(phases.begin(), phases.end(),
                                         [&](const Phase& phase) { return phase.taps == phases[0].taps; });
        if (uniform && phases[0].taps == 2) return filter_columns<2>(planes, y);
        if (uniform && phases[0].taps == 4) return filter_columns<4>(planes, y);
        filter_columns<0>(planes, y);
    }

    const Upfirdn2dArgs& args_;
    const Plan<T>& plan_;
    const SmallPlan<T>& small_;
    const int64_t rows_;            // Horizontally filtered rows of a plane, with those of zeros.
    std::vector<T> filtered_;       // Such rows, and one for what is not used. Those of zeros are never overwritten.
    std::vector<T> inputs_;
    std::vector<T> results_;
    std::vector<int64_t> targets_;  // Where in filtered_ the rows of x go.
};

template <typename Element, int Lanes>
bool filter_if_small(const Upfirdn2dArgs& args, const Plan<typename Element::Math>& plan) {
    const auto small = make_small_plan(args, plan, Lanes);
    if (small.products > kMostProducts) return false;
    const int64_t values = std::max((plan.y.last - plan.y.first) * args.y_width, args.x_height * args.x_width);
    const int64_t together = std::clamp<int64_t>(4096 / values, 1, plan.planes);  // They stay in the first cache.
    const int64_t elements = plan.planes * args.y_height * args.y_width;
    parallel_blocks(ceil_div(plan.planes, together), elements, args.num_threads, [&](int64_t first, int64_t last) {
        SmallFilter<Element, Lanes> filter(args, plan, small, together);
        for (int64_t block = first; block < last; ++block) {
            filter.run(block * together, std::min((block + 1) * together, plan.planes));
        }
    });
    return true;
}

// Compute it this way; false if another way is better.
template <typename Element>
bool filter_if_small(const Upfirdn2dArgs& args, const Plan<typename Element::Math>& plan) {
    constexpr int lanes = kLanes<typename Element::Math>;
    if (!plan.separable || plan.pixel > 1 || args.x_height * args.x_width == 0) return false;
    if (args.y_width < lanes / 2 || args.y_width > kSmallWidth) return false;
    if (std::max({args.x_height, args.y_height, plan.y.last - plan.y.first}) > kSmallHeight) return false;
    return args.y_width < lanes ? filter_if_small<Element, lanes / 2>(args, plan)
                                : filter_if_small<Element, lanes>(args, plan);
}

}  // namespace stylegan_ops

#else

namespace stylegan_ops {

template <typename Element>
bool filter_if_small(const Upfirdn2dArgs&, const Plan<typename Element::Math>&) {
    return false;
}

}  // namespace stylegan_ops

#endif

#endif
