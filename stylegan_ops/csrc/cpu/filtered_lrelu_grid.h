// The grid between the two filters of filtered_lrelu: how it lies in memory, and its rows, made from those of an image.
#ifndef STYLEGAN_OPS_CPU_FILTERED_LRELU_GRID_H
#define STYLEGAN_OPS_CPU_FILTERED_LRELU_GRID_H

#include <algorithm>
#include <limits>
#include <vector>

#include "element.h"
#include "filtered_lrelu_sums.h"

namespace stylegan_ops {
namespace {  // Phases and lanes are something else in other operators.

// A filter as a correlation, its gain multiplied in: at(k, l), or y(k) * x(l).
template <typename T>
class Taps {
  public:
    explicit Taps(const Resampling& args)
        : height(args.filter_height), width(args.filter_width), separable(args.separable != 0), args_(args) {}

    T y(int64_t k) const { return tap(args_.flip ? k : height - 1 - k); }
    T x(int64_t l) const { return T(args_.gain) * tap(args_.flip ? l : width - 1 - l); }
    T at(int64_t k, int64_t l) const {
        if (separable) return y(k) * x(l);
        return T(args_.gain) * tap(args_.flip ? k * width + l : (height - k) * width - 1 - l);
    }
    // Whether each row is the same backwards; and the rows of a filter that is no product, too.
    Symmetry symmetry() const {
        const int64_t rows = separable ? 1 : height;
        bool taps = width % 2 == 0, mirrored = !separable && height % 2 == 0;
        for (int64_t k = 0; k < rows; ++k) {
            for (int64_t l = 0; l < width; ++l) {
                taps = taps && (separable ? x(l) == x(width - 1 - l) : at(k, l) == at(k, width - 1 - l));
                mirrored = mirrored && at(k, l) == at(height - 1 - k, l);
            }
        }
        return !taps ? Symmetry::kNone : mirrored ? Symmetry::kTapsAndRows : Symmetry::kTaps;
    }

    const int64_t height, width;
    const bool separable;

  private:
    T tap(int64_t i) const { return T(static_cast<const float*>(args_.filter)[i]); }

    const Resampling& args_;
};

// Which taps, and from which pixel on, make the grid's elements of one phase.
struct Phase {
    int64_t tap;    // The first; then every factor-th.
    int64_t pixel;  // Under the first tap.
    int64_t count;
};

inline Phase phase_of(int64_t position, int64_t factor, int64_t pad, int64_t taps) {
    const int64_t tap = modulo(pad - position, factor);
    return {tap, (position + tap - pad) / factor, tap < taps ? ceil_div(taps - tap, factor) : 0};
}

// Filters of StyleGAN3 have so many taps for each phase. If all of them do, the grid is kept as so many arrays, and sums
// are computed together: of the arrays of a phase, or of all those that the result is put together from.
constexpr int kPhaseTaps = 6, kPeriod = 8;

inline bool is_common(const Resampling& args) {
    return (args.factor == 2 || args.factor == 4) && args.filter_width == kPhaseTaps * args.factor;
}

// How arrays lie in memory: `planes` rows of `step` elements each, which sums compute `count` elements of, and more that
// they only read. Arrays of a group, such as the `period` ones of a row of the grid, are `size` elements apart.
struct Layout {
    int64_t planes, step, count, size;
};

// Elements that sums are quickest at, what setting one up costs in elements, and elements of a row of the grid that leave
// room in the caches.
constexpr int64_t kBlock = 128, kSetUp = 96, kMostElements = 1536;

// Lets as many planes share an array as make the least of both.
inline Layout make_layout(int64_t step, int64_t period, int64_t planes, int64_t lanes) {
    int64_t best = 1;
    double least = std::numeric_limits<double>::infinity();
    for (int64_t n = 1; n <= planes && (n == 1 || n * step * period <= kMostElements); ++n) {
        const double cost = double(whole_vectors(n * step, kBlock / 2) + kSetUp) / double(n);
        if (cost < least) {
            least = cost;
            best = n;
        }
    }
    const int64_t count = whole_vectors(best * step, lanes);
    return {best, step, count, whole_vectors(count + step, lanes)};
}

// from[i] + summand is dealt out to `parts` arrays, to[0], to[size], ... to[1], to[size + 1], ...: element i + shift of the
// deal. Known to the compiler, the number of parts is no division.
template <int Parts, typename Element, typename T = typename Element::Math>
inline void deal(const typename Element::Stored* from, int64_t begin, int64_t end, int64_t shift, T summand, T* to,
                 int64_t size, int64_t any_parts) {
    const int64_t parts = Parts ? Parts : any_parts;
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t first = begin + modulo(part - begin - shift, parts);
        T* const out = to + part * size + (first + shift) / parts;
        for (int64_t i = first, n = 0; i < end; i += parts, ++n) out[n] = Element::load(from[i]) + summand;
    }
}

// The inverse.
template <int Parts, typename Element, typename T = typename Element::Math>
inline void merge(const T* from, int64_t size, int64_t any_parts, int64_t count, typename Element::Stored* to) {
    const int64_t parts = Parts ? Parts : any_parts;
    for (int64_t part = 0; part < parts; ++part) {
        const T* const in = from + part * size;
        for (int64_t i = part, n = 0; i < count; i += parts, ++n) to[i] = Element::store(in[n]);
    }
}

// Which pixels the taps meet, for each array of a row of the grid.
struct Columns {
    Columns(const Resampling& args, int64_t period) : parts(period / args.factor) {
        first = std::numeric_limits<int64_t>::max();
        int64_t last = 0;
        for (int64_t s = 0; s < period; ++s) {
            phases.push_back(phase_of(s, args.factor, args.pad_x, args.filter_width));
            first = std::min(first, phases[s].pixel);
            last = std::max(last, phases[s].pixel + std::max<int64_t>(phases[s].count, 1) - 1);
        }
        reach = (last - first) / parts;
    }

    int64_t parts;  // Arrays that pixels are dealt out to.
    int64_t first;  // Pixel of a row's first element.
    int64_t reach;  // Elements behind its own that an element of the grid needs, at most.
    std::vector<Phase> phases;
};

// Rows of the grid from rows of an image.
template <typename Element>
class Upsampler {
    using T = typename Element::Math;
    using Stored = typename Element::Stored;

  public:
    Upsampler(const Resampling& args, const Columns& columns, const Layout& layout, bool together)
        : args_(args),
          taps_(args),
          columns_(columns),
          layout_(layout),
          row_(columns.parts * layout.size),
          rows_(ceil_div(args.filter_height, args.factor)),
          pixels_(rows_ * row_ + kLanes<T>),
          filtered_(row_ + kLanes<T>),
          held_(rows_),
          images_(layout.planes),
          summands_(layout.planes),
          together_(together) {
        const int64_t rows = taps_.separable ? 1 : taps_.height;
        for (int64_t k = 0; k < rows; ++k) {
            for (const Phase& phase : columns.phases) {
                for (int64_t n = 0; n < phase.count; ++n) {
                    const int64_t l = phase.tap + n * args.factor;
                    weights_.push_back(taps_.separable ? taps_.x(l) : taps_.at(k, l));
                }
            }
        }
        for (int64_t s = 0; s < args.factor && together; ++s) {
            for (int64_t n = 0; n < columns.parts; ++n) offsets_.push_back(offset_of(columns.phases[s], n));
        }
    }

    // Goes to planes [first, first + count).
    void begin(const void* images, int64_t first, int64_t count, const Stored* summands, int64_t channels) {
        planes_ = count;
        for (int64_t n = 0; n < count; ++n) {
            images_[n] = static_cast<const Stored*>(images) + (first + n) * args_.height * args_.width;
            summands_[n] = summands ? Element::load(summands[(first + n) % channels]) : T(-0.0);
        }
        std::fill(held_.begin(), held_.end(), int64_t(-1));
    }

    // Row i of the grid, of which then(elements, index) is written.
    template <typename Then>
    void write_row(int64_t i, T* out, const Then& then) {
        const Phase phase = phase_of(i, args_.factor, args_.pad_y, taps_.height);
        const int64_t begin = std::max<int64_t>(0, -phase.pixel);
        const int64_t end = std::min(phase.count, args_.height - phase.pixel);
        if (taps_.separable) {
            sum_.clear();
            for (int64_t n = begin; n < end; ++n) {
                sum_.add(row_of(phase.pixel + n), taps_.y(phase.tap + n * args_.factor));
            }
            sum_.write(row_, filtered_.data());
        }
        // Rows that the horizontal sums are of, and the first weights of each.
        sources_.clear();
        const int64_t weights = int64_t(weights_.size()) / (taps_.separable ? 1 : taps_.height);
        if (taps_.separable) sources_.push_back({filtered_.data(), weights_.data(), nullptr});
        for (int64_t n = begin; n < end && !taps_.separable; ++n) {
            const int64_t k = phase.tap + n * args_.factor;
            sources_.push_back({row_of(phase.pixel + n), weights_.data() + k * weights, nullptr});
        }
        together_ ? sum_together(out, then) : sum_one_by_one(out, then);
    }

  private:
    template <typename Then>
    void sum_together(T* out, const Then& then) {
        const int64_t* offsets = offsets_.data();
        for (int64_t s = 0; s < args_.factor; ++s) {
            const int64_t shift = s * layout_.size;
            const Shifted<T, Then> then_there{then, shift};
            const int64_t size = args_.factor * layout_.size;
            if constexpr (kTogether<T>) {
                constexpr int two = kPeriod / 2, four = kPeriod / 4;
                const auto sum = args_.factor == 2
                                     ? correlate<kPhaseTaps, 1, two, two, Symmetry::kNone, T, Shifted<T, Then>>
                                     : correlate<kPhaseTaps, 1, four, four, Symmetry::kNone, T, Shifted<T, Then>>;
                sum(sources_, offsets, layout_.count, out + shift, size, then_there);
            }
            offsets += columns_.parts;
            for (Source<T>& source : sources_) source.weights += kPhaseTaps;
        }
    }

    template <typename Then>
    void sum_one_by_one(T* out, const Then& then) {
        int64_t shift = 0;
        for (const Phase& columns : columns_.phases) {
            sum_.clear();
            for (Source<T>& source : sources_) {
                for (int64_t n = 0; n < columns.count; ++n) {
                    sum_.add(source.row + offset_of(columns, n), source.weights[n]);
                }
                source.weights += columns.count;
            }
            sum_.write(layout_.count, out + shift, Shifted<T, Then>{then, shift});
            shift += layout_.size;
        }
    }

    // Where in a row the pixels under tap n of a phase begin.
    int64_t offset_of(const Phase& phase, int64_t n) const {
        const int64_t pixel = phase.pixel + n - columns_.first;
        return pixel % columns_.parts * layout_.size + pixel / columns_.parts;
    }

    // A row of the images, dealt out into parts; what lies beside them is zero.
    const T* row_of(int64_t row) {
        const int64_t slot = row % rows_, parts = columns_.parts, first = columns_.first;
        T* const values = pixels_.data() + slot * row_;
        if (held_[slot] == row) return values;
        held_[slot] = row;
        const int64_t begin = std::max<int64_t>(0, first), end = std::min(args_.width, first + parts * layout_.step);
        for (int64_t plane = 0; plane < planes_; ++plane) {
            const Stored* const pixels = images_[plane] + row * args_.width;
            T* const out = values + plane * layout_.step;
            const auto dealing = parts == 1   ? deal<1, Element>
                                 : parts == 2 ? deal<2, Element>
                                 : parts == 4 ? deal<4, Element>
                                              : deal<0, Element>;
            dealing(pixels, begin, end, -first, summands_[plane], out, layout_.size, parts);
        }
        return values;
    }

    const Resampling& args_;
    const Taps<T> taps_;
    const Columns columns_;
    const Layout layout_;
    const int64_t row_, rows_;
    std::vector<T> weights_;
    Buffer<T> pixels_, filtered_;
    std::vector<int64_t> held_;
    std::vector<const Stored*> images_;
    std::vector<T> summands_;
    const bool together_;
    std::vector<int64_t> offsets_;
    std::vector<Source<T>> sources_;
    int64_t planes_ = 0;
    Sum<T> sum_;
};

}  // namespace
}  // namespace stylegan_ops

#endif
