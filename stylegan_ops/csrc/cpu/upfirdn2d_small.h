// upfirdn2d of small planes with a separable filter: of four taps, plain, upsampling by 2 or downsampling by 2, and of two
// taps, resampling by 2. These are the cases of StyleGAN2 and of U-Nets, and their gradients. The rows of small planes
// are too short for RowFilter to be quick at.
//
// A block of neighboring columns is computed from top to bottom, and filtered rows stay in registers until all outputs
// that they are part of are done. Horizontally, as many vectors of inputs as the filter has taps, weighted, make up a
// vector of outputs, or two where upsampling. Their lanes may lie beside the image, where memory has the end of another
// row. These are cleared by a mask, since even a weight of zero would make NaN of an infinite value there.
#ifndef STYLEGAN_OPS_CPU_UPFIRDN2D_SMALL_H
#define STYLEGAN_OPS_CPU_UPFIRDN2D_SMALL_H

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "element.h"
#include "parallel.h"
#include "upfirdn2d_plan.h"

#if defined(__GNUC__)  // And Clang: for vectors as a type.

namespace stylegan_ops {

template <int Lanes, typename Float = float, typename Integer = int32_t>
struct Vector {
    typedef Float Type __attribute__((vector_size(Lanes * sizeof(Float))));
    typedef Integer Mask __attribute__((vector_size(Lanes * sizeof(Float))));

    static Type load(const float* from) {
        Type to;
        std::memcpy(&to, from, sizeof to);
        return to;
    }
    static void store(float* to, Type from) { std::memcpy(to, &from, sizeof from); }
    static Type where(Mask mask, Type value) { return Type(mask & Mask(value)); }

    // Lanes First, First + 2, ... of a, then those of b.
    template <int First>
    static Type every_other(Type a, Type b) {
        return every_other<First>(a, b, std::make_integer_sequence<int, Lanes>());
    }
    // From lane First on, a lane of a, the same one of b, the next one of a, ...
    template <int First>
    static Type interleaved(Type a, Type b) {
        return interleaved<First>(a, b, std::make_integer_sequence<int, Lanes>());
    }

  private:
    template <int First, int... I>
    static Type every_other(Type a, Type b, std::integer_sequence<int, I...>) {
        return shuffle<(First + 2 * I)...>(a, b);
    }
    template <int First, int... I>
    static Type interleaved(Type a, Type b, std::integer_sequence<int, I...>) {
        return shuffle<(First + I / 2 + I % 2 * Lanes)...>(a, b);
    }
    template <int... I>
    static Type shuffle(Type a, Type b) {
#ifdef __clang__
        return __builtin_shufflevector(a, b, I...);
#else
        return __builtin_shuffle(a, b, Mask{I...});
#endif
    }
};

// The longest that the processor has: compilers keep longer ones in memory.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// How outputs and inputs advance along a row.
enum class Step { kPlain, kUp, kDown };

// Wider rows are RowFilter's, as are planes that do not fit into the first cache together with what becomes of them.
constexpr int64_t kSmallWidth = 64, kSmallValues = 8192;
// Most elements before or behind a plane that vectors may reach, which only odd paddings make them do.
constexpr int64_t kMostOutside = 64;

// Apart from what calls it, so that it is compiled once and not for each element type.
class AnySmallFilter {
  public:
    virtual ~AnySmallFilter() = default;
    // Compute y of planes that lie one behind the other.
    virtual void run(const float* x, int64_t planes, float* y) const = 0;

    // Values before and behind the planes that run() reads too; they do not matter.
    int64_t before = 0, behind = 0;
};

template <int Lanes, Step Kind, int FilterTaps>
class SmallFilter final : public AnySmallFilter {
    using V = Vector<Lanes>;
    using Type = typename V::Type;
    // An output is a sum of kTaps products.
    static constexpr int kPhases = Kind == Step::kUp ? 2 : 1, kTaps = FilterTaps / kPhases;
    // Inputs from the first one on that are read for a vector of outputs of one phase.
    static constexpr int kReach = Kind == Step::kDown ? FilterTaps - 2 + 2 * Lanes : kTaps - 1 + Lanes;

  public:
    static constexpr int kColumns = Lanes * kPhases;  // That are computed at once.

    SmallFilter(const Upfirdn2dArgs& args, const Plan<float>& plan) : args_(args), plan_(plan) {
        for (int64_t phase = 0; phase < int64_t(plan.column.size()); ++phase) {
            columns_.insert(columns_.end(), plan.column[phase].begin(), plan.column[phase].end());
            const bool last = phase + 1 == int64_t(plan.column.size());
            const int64_t next = last ? plan.y.phases[0].base + plan.y.step : plan.y.phases[phase + 1].base;
            advances_.push_back(next - plan.y.phases[phase].base);
        }
        for (int64_t begin = 0; begin < args.y_width; begin += kColumns) {
            const Block block = make_block(std::min(begin, args.y_width - kColumns));
            for (int phase = 0; phase < kPhases; ++phase) {
                before = std::max(before, -block.base[phase]);
                behind = std::max(behind, block.base[phase] + kReach - args.x_width);
            }
            blocks_.push_back(block);
        }
    }

    void run(const float* x, int64_t planes, float* y) const override {
        const bool all = plan_.y.most_taps == FilterTaps;
        for (const Block& block : blocks_) {
            all ? filter<FilterTaps>(block, x, planes, y) : filter<FilterTaps / 2>(block, x, planes, y);
        }
    }

  private:
    // Neighboring columns of the result.
    struct Block {
        int64_t column;   // The first one.
        int64_t base[2];  // The first inputs of the outputs there and, where upsampling, in the next column.
        Type weights[FilterTaps];
        typename V::Mask inside[FilterTaps];  // All bits where the product's input is one of the image.
    };
    struct Row {
        Type part[kPhases];
    };

    Block make_block(int64_t first) const {
        Block block{};
        block.column = first;
        for (int p = 0; p < FilterTaps; ++p) {
            const int64_t column = first + p / kTaps;
            block.base[p / kTaps] = plan_.x.input(column);
            block.weights[p] = plan_.rows[0][column % kPhases][p % kTaps] - Type{};
            for (int lane = 0; lane < Lanes; ++lane) {
                const int64_t input = plan_.x.input(column + lane * kPhases) + p % kTaps;
                block.inside[p][lane] = input >= 0 && input < args_.x_width ? -1 : 0;
            }
        }
        return block;
    }

    // The block's part of a horizontally filtered row.
    static Row filter_row(const Block& block, const float* row) {
        Row sum{};
        const auto product = [&](int p, Type inputs) { return block.weights[p] * V::where(block.inside[p], inputs); };
        const float* const x = row + block.base[0];
        if constexpr (Kind == Step::kPlain) {
            sum.part[0] = product(0, V::load(x));
            for (int p = 1; p < kTaps; ++p) sum.part[0] += product(p, V::load(x + p));
        } else if constexpr (Kind == Step::kDown) {
            for (int p = 0; p < kTaps; p += 2) {
                const Type a = V::load(x + p), b = V::load(x + p + Lanes);
                sum.part[0] += product(p, V::template every_other<0>(a, b));
                sum.part[0] += product(p + 1, V::template every_other<1>(a, b));
            }
        } else {
            const float* const x1 = row + block.base[1];
            Type a = product(0, V::load(x)), b = product(kTaps, V::load(x1));
            for (int p = 1; p < kTaps; ++p) {
                a += product(p, V::load(x + p));
                b += product(kTaps + p, V::load(x1 + p));
            }
            sum.part[0] = V::template interleaved<0>(a, b);
            sum.part[1] = V::template interleaved<Lanes / 2>(a, b);
        }
        return sum;
    }

    template <int Taps>
    void filter(const Block& columns, const float* x, int64_t planes, float* y) const {
        // Copies, since for all that the compiler knows, each store might change the originals.
        const Block block = columns;
        const int64_t x_height = args_.x_height, x_width = args_.x_width;
        const int64_t y_height = args_.y_height, y_width = args_.y_width;
        const int64_t top = plan_.y.phases[0].base, phases = int64_t(advances_.size());
        const float* const weights = columns_.data();
        const int64_t* const advances = advances_.data();
        for (int64_t plane = 0; plane < planes; ++plane) {
            const float* const image = x + plane * x_height * x_width;
            float* to = y + plane * y_height * y_width + block.column;
            int64_t next = top;
            Row rows[Taps];  // Below an output.
            const auto advance = [&] {
                for (int t = 0; t + 1 < Taps; ++t) rows[t] = rows[t + 1];
                rows[Taps - 1] = next >= 0 && next < x_height ? filter_row(block, image + next * x_width) : Row{};
                ++next;
            };
            for (int t = 0; t < Taps; ++t) advance();
            for (int64_t i = 0, phase = 0; i < y_height; ++i, to += y_width) {
                for (int part = 0; part < kPhases; ++part) {
                    Type sum = weights[phase * Taps] * rows[0].part[part];
                    for (int t = 1; t < Taps; ++t) sum += weights[phase * Taps + t] * rows[t].part[part];
                    V::store(to + part * Lanes, sum);
                }
                for (int64_t n = advances[phase]; n > 0; --n) advance();
                if (++phase == phases) phase = 0;
            }
        }
    }

    const Upfirdn2dArgs& args_;
    const Plan<float>& plan_;
    std::vector<Block> blocks_;      // The last two may overlap.
    std::vector<float> columns_;     // The vertical filter's taps, phase by phase, and
    std::vector<int64_t> advances_;  // how many inputs later an output of the next phase begins.
};

using AnySmallFilterPointer = std::unique_ptr<const AnySmallFilter>;

template <int Lanes, Step Kind, int FilterTaps>
AnySmallFilterPointer make_if_wide_enough(const Upfirdn2dArgs& args, const Plan<float>& plan) {
    using Filter = SmallFilter<Lanes, Kind, FilterTaps>;
    return args.y_width < Filter::kColumns ? nullptr : std::make_unique<const Filter>(args, plan);
}

// What computes it with vectors of so many bytes or less; null if another way is better.
template <int Bytes>
AnySmallFilterPointer make_small_filter(const Upfirdn2dArgs& args, const Plan<float>& plan) {
    constexpr int lanes = Bytes / int(sizeof(float));
    const Axis &x = plan.x, &y = plan.y;
    const bool up = x.phases.size() == 2 && x.step == 1, down = x.period == 1 && x.step == 2;
    const int64_t taps = up ? 2 * x.phases[0].taps : x.phases[0].taps;
    if (!y.each_phase_has(taps) && !y.each_phase_has(taps / 2)) return nullptr;
    AnySmallFilterPointer filter;
    if (x.period == 1 && x.step == 1 && taps == 4) {
        filter = make_if_wide_enough<lanes, Step::kPlain, 4>(args, plan);
    } else if (down && taps == 4) {
        filter = make_if_wide_enough<lanes, Step::kDown, 4>(args, plan);
    } else if (down && taps == 2) {
        filter = make_if_wide_enough<lanes, Step::kDown, 2>(args, plan);
    } else if (up && taps == 4 && x.each_phase_has(2)) {
        filter = make_if_wide_enough<lanes, Step::kUp, 4>(args, plan);
    } else if (up && taps == 2 && x.each_phase_has(1)) {
        filter = make_if_wide_enough<lanes, Step::kUp, 2>(args, plan);
    }
    if constexpr (Bytes > 16) {
        if (!filter) return make_small_filter<Bytes / 2>(args, plan);
    }
    return filter;
}

// Compute it this way; false if another way is better.
template <typename Element>
bool filter_if_small(const Upfirdn2dArgs& args, const Plan<float>& plan) {
    using Stored = typename Element::Stored;
    constexpr bool same = std::is_same_v<Stored, float>;
    const int64_t in = args.x_height * args.x_width, out = args.y_height * args.y_width;
    if (!plan.separable || plan.pixel > 1 || args.y_width > kSmallWidth || in + out > kSmallValues) return false;
    const AnySmallFilterPointer filter = make_small_filter<kVectorBytes>(args, plan);
    if (!filter || std::max(filter->before, filter->behind) > kMostOutside) return false;
    const int64_t before = filter->before, behind = filter->behind;
    const int64_t together = std::clamp<int64_t>(kSmallValues / (in + out), 1, plan.planes);
    parallel_blocks(ceil_div(plan.planes, together), plan.planes * out, args.num_threads, [&](int64_t i, int64_t last) {
        std::vector<float> inputs(before + together * in + behind), results(same ? 0 : together * out);
        for (; i < last; ++i) {
            const int64_t begin = i * together, end = std::min(begin + together, plan.planes);
            const Stored* const x = static_cast<const Stored*>(args.x) + begin * in;
            Stored* const y = static_cast<Stored*>(args.y) + begin * out;
            // The first and the last planes may lack values beside them, and are copied to where there are some.
            const bool copied = !same || begin * in < before || (plan.planes - end) * in < behind;
            if (copied) std::transform(x, x + (end - begin) * in, inputs.begin() + before, Element::load);
            if constexpr (same) {
                filter->run(copied ? inputs.data() + before : x, end - begin, y);
            } else {
                filter->run(inputs.data() + before, end - begin, results.data());
                std::transform(results.begin(), results.begin() + (end - begin) * out, y, Element::store);
            }
        }
    });
    return true;
}

// For double precision, which little but tests asks for, it would take as long again to compile.
template <typename Element>
bool filter_if_small(const Upfirdn2dArgs&, const Plan<double>&) {
    return false;
}

}  // namespace stylegan_ops

#else

namespace stylegan_ops {

template <typename Element, typename T>
bool filter_if_small(const Upfirdn2dArgs&, const Plan<T>&) {
    return false;
}

}  // namespace stylegan_ops

#endif

#endif
