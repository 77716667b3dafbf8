// Upsample, pad, filter, downsample: vertically first, into a buffer with the zeros of the padding at its ends, then
// horizontally, if the filter is an outer product. Other filters add up the horizontal results of their rows.
#include "element.h"
#include "parallel.h"
#include "upfirdn2d_plan.h"
#include "upfirdn2d_small.h"

namespace stylegan_ops {
namespace {

// out[j] = (or +=) sum over t of weights[t] * row[j * step + t]; Step 0 stands for any step.
template <int Taps, int Step, typename T>
inline void strided_sum(const T* __restrict row, const T* weights, int64_t any_step, int64_t count,
                        T* __restrict out, bool accumulate) {
    const int64_t step = Step == 0 ? any_step : Step;
    const T w0 = weights[0], w1 = weights[Taps > 1 ? 1 : 0], w2 = weights[Taps > 2 ? 2 : 0],
            w3 = weights[Taps > 3 ? 3 : 0];
    const auto at = [=](int64_t j) {
        T sum = w0 * row[j * step];
        if constexpr (Taps > 1) sum += w1 * row[j * step + 1];
        if constexpr (Taps > 2) sum += w2 * row[j * step + 2];
        if constexpr (Taps > 3) sum += w3 * row[j * step + 3];
        return sum;
    };
    if (accumulate) {
        for (int64_t j = 0; j < count; ++j) out[j] += at(j);
    } else {
        for (int64_t j = 0; j < count; ++j) out[j] = at(j);
    }
}

template <int Step, typename T>
void correlate(const T* row, const T* weights, int64_t taps, int64_t step, int64_t count, T* out, bool accumulate) {
    for (int64_t t = 0; t < taps; t += 4) {
        const bool add = accumulate || t > 0;
        switch (std::min(taps - t, int64_t(4))) {
            case 1: strided_sum<1, Step>(row + t, weights + t, step, count, out, add); break;
            case 2: strided_sum<2, Step>(row + t, weights + t, step, count, out, add); break;
            case 3: strided_sum<3, Step>(row + t, weights + t, step, count, out, add); break;
            default: strided_sum<4, Step>(row + t, weights + t, step, count, out, add); break;
        }
    }
    if (taps == 0 && !accumulate) std::fill(out, out + count, T(0));
}

// Both phases of a filter with two taps in each, as upsampling by 2 with four taps has them.
template <typename T>
void interleave_two_taps(const T* __restrict even, const T* __restrict odd, const T* even_weights,
                         const T* odd_weights, int64_t count, T* __restrict out) {
    const T e0 = even_weights[0], e1 = even_weights[1], o0 = odd_weights[0], o1 = odd_weights[1];
    for (int64_t j = 0; j < count; ++j) {
        out[2 * j] = e0 * even[j] + e1 * even[j + 1];
        out[2 * j + 1] = o0 * odd[j] + o1 * odd[j + 1];
    }
}

// Rows of an image that are computed in one go, by one thread.
constexpr int64_t kRows = 64;

template <typename Element>
class RowFilter {
    using T = typename Element::Math;
    using Stored = typename Element::Stored;

  public:
    RowFilter(const Upfirdn2dArgs& args, const Plan<T>& plan)
        : args_(args),
          plan_(plan),
          inside_((plan.x.inside_last - plan.x.inside_first) * plan.pixel),
          width_(args.y_width * plan.pixel),
          padded_width_((plan.x.last - plan.x.first) * plan.pixel),
          together_(plan.separable ? std::clamp<int64_t>(kTogether / padded_width_, 1, kRows) : 1),
          padded_(together_ * padded_width_),
          phase_out_(plan.x.period > 1 ? plan.x.phases[0].count : 0),
          zeros_(inside_),
          sources_(plan.y.most_taps) {
        if (!kSame) {
            converted_.resize(plan.y.most_taps * inside_);
            held_.resize(plan.y.most_taps);
            out_.resize(together_ * width_);
        }
    }

    // Compute rows [begin, end) of an image or a channel of it.
    void run(int64_t plane, int64_t begin, int64_t end) {
        const int64_t outer = plan_.pixel == 1 ? 1 : 0;  // Channels of contiguous images are planes of their own.
        const Stored* const x = static_cast<const Stored*>(args_.x) + plane * args_.x_stride[outer];
        Stored* const y = static_cast<Stored*>(args_.y) + plane * args_.y_stride[outer];
        std::fill(held_.begin(), held_.end(), int64_t(-1));
        for (int64_t first = begin; first < end; first += together_) {
            const int64_t last = std::min(first + together_, end);
            Stored* const target = y + first * width_;
            if constexpr (kSame) {
                filter(x, first, last, target);
            } else {
                filter(x, first, last, out_.data());
                const int64_t count = (last - first) * width_;
                for (int64_t j = 0; j < count; ++j) target[j] = Element::store(out_[j]);
            }
        }
    }

  private:
    static constexpr bool kSame = sizeof(T) == sizeof(Stored);

    // Values of padded rows that are computed before they are read: read at once, they would not yet have arrived in
    // the cache, and the processor would wait. They have to fit into it.
    static constexpr int64_t kTogether = 2048;

    T* inside(int64_t row) {
        return padded_.data() + row * padded_width_ + (plan_.x.inside_first - plan_.x.first) * plan_.pixel;
    }

    void filter(const Stored* x, int64_t first, int64_t last, T* out) {
        if (plan_.separable) {
            filter_vertically(x, first, last);
            filter_horizontally(last - first, out);
            return;
        }
        const int64_t phase_index = gather(x, first);
        const Phase& phase = plan_.y.phases[phase_index];
        if (phase.taps == 0) std::fill(out, out + width_, T(0));
        for (int64_t t = 0; t < phase.taps; ++t) {
            std::copy_n(sources_[t], inside_, inside(0));
            filter_columns(padded_.data(), plan_.rows[phase.first_tap + t * plan_.y.up], out, t > 0);
        }
    }

    // Make sources_ point at the rows of x that the taps of output row i meet; returns the row's phase.
    int64_t gather(const Stored* x, int64_t i) {
        const Axis& axis = plan_.y;
        const int64_t phase_index = axis.period == 1 ? 0 : i % axis.period;
        const Phase& phase = axis.phases[phase_index];
        const int64_t top = phase.base + (axis.period == 1 ? i : i / axis.period) * axis.step;
        for (int64_t t = 0; t < phase.taps; ++t) sources_[t] = input_row(x, top + t);
        return phase_index;
    }

    template <int Taps>
    void filter_vertically(const Stored* x, int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            const T* const weights = plan_.column[gather(x, i)].data();
            weighted_sum<Taps>(sources_.data(), weights, inside_, inside(i - first), false);
        }
    }

    void filter_vertically(const Stored* x, int64_t first, int64_t last) {
        // With the number of taps known outside of the loop, short rows take half the time.
        if (plan_.y.each_phase_has(2)) return filter_vertically<2>(x, first, last);
        if (plan_.y.each_phase_has(4)) return filter_vertically<4>(x, first, last);
        for (int64_t i = first; i < last; ++i) {
            const int64_t phase = gather(x, i), taps = plan_.y.phases[phase].taps;
            combine(sources_.data(), plan_.column[phase].data(), taps, inside_, inside(i - first), false);
        }
    }

    template <int Step>
    void filter_four_taps(int64_t rows, T* out) {
        const T* const weights = plan_.rows[0][0].data();
        for (int64_t i = 0; i < rows; ++i) {
            strided_sum<4, Step>(padded_.data() + i * padded_width_, weights, Step, width_, out + i * width_, false);
        }
    }

    void filter_horizontally(int64_t rows, T* out) {
        const Axis& axis = plan_.x;
        if (plan_.pixel == 1 && axis.period == 1 && axis.phases[0].taps == 4) {
            if (axis.step == 1) return filter_four_taps<1>(rows, out);
            if (axis.step == 2) return filter_four_taps<2>(rows, out);
        }
        for (int64_t i = 0; i < rows; ++i) {
            filter_columns(padded_.data() + i * padded_width_, plan_.rows[0], out + i * width_, false);
        }
    }

    // The part of a row of x that matters, as numbers to calculate with.
    const T* input_row(const Stored* x, int64_t row) {
        if (row < 0 || row >= args_.x_height) return zeros_.data();
        const Stored* const stored = x + row * args_.x_stride[2] + plan_.x.inside_first * plan_.pixel;
        if constexpr (kSame) {
            return stored;
        } else {
            const int64_t slot = row % plan_.y.most_taps;
            T* const converted = converted_.data() + slot * inside_;
            if (held_[slot] != row) {
                held_[slot] = row;
                for (int64_t j = 0; j < inside_; ++j) converted[j] = Element::load(stored[j]);
            }
            return converted;
        }
    }

    void filter_columns(const T* padded, const PhaseWeights<T>& weights, T* out, bool accumulate) {
        const Axis& axis = plan_.x;
        if (plan_.pixel > 1) {
            filter_pixels(padded, weights, out, accumulate);
            return;
        }
        if (axis.period == 1) {
            correlate_any(start(padded, 0), weights[0], axis.phases[0].count, out, accumulate);
            return;
        }
        if (axis.period == 2 && axis.step == 1 && axis.phases.size() == 2 && axis.phases[0].taps == 2 &&
            axis.phases[1].taps == 2 && !accumulate) {
            const int64_t pairs = axis.phases[1].count;
            interleave_two_taps(start(padded, 0), start(padded, 1), weights[0].data(), weights[1].data(), pairs, out);
            if (axis.phases[0].count > pairs) {
                correlate<1>(start(padded, 0) + pairs, weights[0].data(), 2, 1, 1, out + 2 * pairs, false);
            }
            return;
        }
        for (size_t phase = 0; phase < axis.phases.size(); ++phase) {
            const int64_t count = axis.phases[phase].count;
            correlate_any(start(padded, phase), weights[phase], count, phase_out_.data(), false);
            T* const target = out + phase;
            for (int64_t j = 0; j < count; ++j) {
                target[j * axis.period] = accumulate ? target[j * axis.period] + phase_out_[j] : phase_out_[j];
            }
        }
    }

    const T* start(const T* padded, size_t phase) const {
        return padded + (plan_.x.phases[phase].base - plan_.x.first) * plan_.pixel;
    }

    void correlate_any(const T* row, const std::vector<T>& weights, int64_t count, T* out, bool accumulate) {
        const int64_t taps = int64_t(weights.size()), step = plan_.x.step;
        if (step == 1) {
            correlate<1>(row, weights.data(), taps, step, count, out, accumulate);
        } else if (step == 2) {
            correlate<2>(row, weights.data(), taps, step, count, out, accumulate);
        } else {
            correlate<0>(row, weights.data(), taps, step, count, out, accumulate);
        }
    }

    // The same for pixels of several channels, whose values lie side by side.
    void filter_pixels(const T* padded, const PhaseWeights<T>& weights, T* out, bool accumulate) {
        const Axis& axis = plan_.x;
        const int64_t pixel = plan_.pixel;
        // Neighboring outputs that start at neighboring inputs are one long run of values.
        const bool one_run = axis.period == 1 && axis.step == 1;
        for (size_t phase = 0; phase < axis.phases.size(); ++phase) {
            const int64_t taps = axis.phases[phase].taps, count = axis.phases[phase].count;
            const int64_t runs = one_run ? 1 : count, length = one_run ? count * pixel : pixel;
            const T* const row = start(padded, phase);
            pixel_sources_.resize(size_t(taps));
            for (int64_t j = 0; j < runs; ++j) {
                for (int64_t t = 0; t < taps; ++t) pixel_sources_[t] = row + (j * axis.step + t) * pixel;
                T* const target = out + (int64_t(phase) + j * axis.period) * pixel;
                combine(pixel_sources_.data(), weights[phase].data(), taps, length, target, accumulate);
            }
        }
    }

    const Upfirdn2dArgs& args_;
    const Plan<T>& plan_;
    const int64_t inside_;             // Values of a row of x that matter, and
    const int64_t width_;              // values of a row of y.
    const int64_t padded_width_;
    const int64_t together_;
    std::vector<T> padded_;            // Rows with their padding, whose zeros are never overwritten.
    std::vector<T> phase_out_;
    std::vector<T> zeros_;             // A row above or below the image.
    std::vector<const T*> sources_;
    std::vector<const T*> pixel_sources_;
    std::vector<T> converted_;         // The last rows of x, of 16-bit types: row r is in slot r % most_taps.
    std::vector<int64_t> held_;
    std::vector<T> out_;
};

template <typename Element>
void upfirdn2d(const Upfirdn2dArgs& args) {
    const int64_t elements = args.batch * args.channels * args.y_height * args.y_width;
    if (elements == 0) return;
    const auto plan = make_plan<typename Element::Math>(args);
    expect_writes(args.y, elements * int64_t(sizeof(typename Element::Stored)));
    if (filter_if_small<Element>(args, plan)) return;
    const int64_t blocks = ceil_div(args.y_height, kRows);
    parallel_blocks(plan.planes * blocks, elements, args.num_threads, [&](int64_t first, int64_t last) {
        RowFilter<Element> filter(args, plan);
        for (int64_t block = first; block < last; ++block) {
            const int64_t begin = block % blocks * kRows;
            filter.run(block / blocks, begin, std::min(begin + kRows, args.y_height));
        }
    });
}

}  // namespace
}  // namespace stylegan_ops

// 0, or 1 if the arguments name a dtype that does not exist.
SGO_EXPORT int stylegan_ops_upfirdn2d(const Upfirdn2dArgs* args) {
    using namespace stylegan_ops;
    return dispatch(args->dtype, [&](auto element) { upfirdn2d<decltype(element)>(*args); }) ? 0 : 1;
}
