// Upsample, activate, downsample, row by row: the finer grid, several times as large as input and result, never leaves
// the first caches. With a second input, that input passes and the activation of the first only decides how much of it.
//
// Along a row, the grid is kept as `period` arrays, the period being a multiple of both resampling factors: array s holds
// the elements s, s + period, ... The taps that meet a pixel are then the same for all elements of an array, and both
// filters are weighted sums of contiguous memory. Inputs are dealt out in the same way, and results put together again.
//
// An array holds the rows of several planes, one behind the other, with zeros between them where a filter reaches beyond
// an image. Sums of short rows would wait for each other's additions, and setting them up would take most of the time.
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "element.h"
#include "parallel.h"

namespace stylegan_ops {
namespace {

// As many numbers as the processor computes with at once.
#if defined(__GNUC__)
#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
template <typename T>
struct Numbers;
template <>
struct Numbers<float> {
    typedef float Type __attribute__((vector_size(kBytes)));
    typedef int32_t Mask __attribute__((vector_size(kBytes)));
};
template <>
struct Numbers<double> {
    typedef double Type __attribute__((vector_size(kBytes)));
    typedef int64_t Mask __attribute__((vector_size(kBytes)));
};
template <typename T>
using Vector = typename Numbers<T>::Type;
template <typename T>
using Mask = typename Numbers<T>::Mask;

template <typename T>
inline Vector<T> select(Mask<T> mask, Vector<T> yes, Vector<T> no) {
#ifdef __clang__
    return Vector<T>((mask & Mask<T>(yes)) | (~mask & Mask<T>(no)));
#else
    return mask ? yes : no;
#endif
}
template <typename T>
inline Vector<T> splat(T value) {
    return value - Vector<T>{};
}
#else
constexpr int kBytes = 1;  // A vector is a number.
template <typename T>
using Vector = T;
template <typename T>
using Mask = bool;

template <typename T>
inline T select(bool mask, T yes, T no) {
    return mask ? yes : no;
}
template <typename T>
inline T splat(T value) {
    return value;
}
#endif

template <typename T>
constexpr int64_t kLanes = sizeof(Vector<T>) / sizeof(T);

template <typename T>
inline Vector<T> load(const T* from) {
    Vector<T> v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
template <typename T>
inline void store(T* to, Vector<T> v) {
    std::memcpy(to, &v, sizeof v);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t modulo(int64_t a, int64_t b) { return (a % b + b) % b; }
inline int64_t whole_vectors(int64_t count, int64_t lanes) { return ceil_div(count, lanes) * lanes; }

// --- weighted sums

template <typename T>
struct Keep {
    Vector<T> operator()(Vector<T> sum, int64_t) const { return sum; }
};

template <int Vectors, typename T, typename Then>
inline void sum_block(const T* const* sources, const T* weights, int64_t terms, int64_t at, T* out, const Then& then) {
    Vector<T> sums[Vectors];
    const Vector<T> first = splat(weights[0]);
    for (int v = 0; v < Vectors; ++v) sums[v] = first * load(sources[0] + at + v * kLanes<T>);
    for (int64_t n = 1; n < terms; ++n) {
        const T* const source = sources[n] + at;
        const Vector<T> weight = splat(weights[n]);
        for (int v = 0; v < Vectors; ++v) sums[v] += weight * load(source + v * kLanes<T>);
    }
    for (int v = 0; v < Vectors; ++v) store(out + at + v * kLanes<T>, then(sums[v], at + v * kLanes<T>));
}

// out[i] = then(sum over n of weights[n] * sources[n][i], i) for i < count, which is a multiple of kLanes.
template <typename T, typename Then>
void weighted_sum(const T* const* sources, const T* weights, int64_t terms, int64_t count, T* out, const Then& then) {
    int64_t at = 0;
    if (terms == 0) {
        for (; at < count; at += kLanes<T>) store(out + at, then(Vector<T>{}, at));
        return;
    }
    for (; at + 8 * kLanes<T> <= count; at += 8 * kLanes<T>) sum_block<8>(sources, weights, terms, at, out, then);
    if (at + 4 * kLanes<T> <= count) {
        sum_block<4>(sources, weights, terms, at, out, then);
        at += 4 * kLanes<T>;
    }
    if (at + 2 * kLanes<T> <= count) {
        sum_block<2>(sources, weights, terms, at, out, then);
        at += 2 * kLanes<T>;
    }
    if (at < count) sum_block<1>(sources, weights, terms, at, out, then);
}

template <typename T>
struct Sum {
    std::vector<const T*> sources;
    std::vector<T> weights;

    void clear() {
        sources.clear();
        weights.clear();
    }
    void add(const T* source, T weight) {
        sources.push_back(source);
        weights.push_back(weight);
    }
    template <typename Then>
    void write(int64_t count, T* out, const Then& then) const {
        weighted_sum(sources.data(), weights.data(), int64_t(sources.size()), count, out, then);
    }
    void write(int64_t count, T* out) const { write(count, out, Keep<T>()); }
};

// --- filters

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
    // Whether rows k and height - 1 - k are equal, as those of a radial filter are.
    bool mirrored() const {
        for (int64_t k = 0; k < height / 2; ++k) {
            for (int64_t l = 0; l < width; ++l) {
                if (at(k, l) != at(height - 1 - k, l)) return false;
            }
        }
        return height > 1;
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

// How arrays lie in memory: `planes` rows of `step` elements each, which sums compute `count` elements of, and more that
// they only read. Arrays of a group, such as the `period` ones of a row of the grid, are `size` elements apart.
struct Layout {
    int64_t planes, step, count, size;
};

// Elements that sums are quickest at, and what setting one up costs in elements.
constexpr int64_t kBlock = 128, kSetUp = 96, kMostElements = 768;

// Lets as many planes share an array as make the least of both.
inline Layout make_layout(int64_t step, int64_t planes, int64_t lanes) {
    int64_t best = 1;
    double least = std::numeric_limits<double>::infinity();
    for (int64_t n = 1; n <= planes && (n == 1 || n * step <= kMostElements); ++n) {
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
        reach = (last - first) / parts + 1;
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
    Upsampler(const Resampling& args, const Columns& columns, const Layout& layout)
        : args_(args),
          taps_(args),
          columns_(columns),
          layout_(layout),
          row_(columns.parts * layout.size),
          rows_(ceil_div(args.filter_height, args.factor)),
          pixels_(rows_ * row_),
          filtered_(row_),
          held_(rows_),
          images_(layout.planes),
          summands_(layout.planes) {
        if (!taps_.separable) return;
        for (const Phase& phase : columns.phases) {
            for (int64_t n = 0; n < phase.count; ++n) weights_x_.push_back(taps_.x(phase.tap + n * args.factor));
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
            for (int64_t part = 0; part < columns_.parts; ++part) {
                sum_.write(layout_.size, filtered_.data() + part * layout_.size);
                for (const T*& source : sum_.sources) source += layout_.size;
            }
        }
        const T* weights = weights_x_.data();
        int64_t offset = 0;
        for (const Phase& columns : columns_.phases) {
            sum_.clear();
            if (taps_.separable) {
                for (int64_t n = 0; n < columns.count; ++n) sum_.add(from(filtered_.data(), columns, n), *weights++);
            } else {
                for (int64_t m = begin; m < end; ++m) {
                    const T* const row = row_of(phase.pixel + m);
                    const int64_t k = phase.tap + m * args_.factor;
                    for (int64_t n = 0; n < columns.count; ++n) {
                        sum_.add(from(row, columns, n), taps_.at(k, columns.tap + n * args_.factor));
                    }
                }
            }
            sum_.write(layout_.count, out + offset, [&](Vector<T> sum, int64_t j) { return then(sum, offset + j); });
            offset += layout_.size;
        }
    }

  private:
    // Where in a row the pixels under tap n of a phase begin.
    const T* from(const T* row, const Phase& phase, int64_t n) const {
        const int64_t pixel = phase.pixel + n - columns_.first;
        return row + pixel % columns_.parts * layout_.size + pixel / columns_.parts;
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
            const auto dealing = parts == 1 ? deal<1, Element> : parts == 2 ? deal<2, Element> : deal<0, Element>;
            dealing(pixels, begin, end, -first, summands_[plane], out, layout_.size, parts);
        }
        return values;
    }

    const Resampling& args_;
    const Taps<T> taps_;
    const Columns columns_;
    const Layout layout_;
    const int64_t row_, rows_;
    std::vector<T> weights_x_, pixels_, filtered_;
    std::vector<int64_t> held_;
    std::vector<const Stored*> images_;
    std::vector<T> summands_;
    int64_t planes_ = 0;
    Sum<T> sum_;
};

// --- activation

template <typename T>
struct Activation {
    T gain, slope, clamp;

    // What z is multiplied by.
    Vector<T> factor(Vector<T> z) const { return select<T>(z > splat(T(0)), splat(gain), splat(gain * slope)); }
    Vector<T> value(Vector<T> z) const {
        const Vector<T> y = z * factor(z);
        if (clamp < T(0)) return y;
        return select<T>(y > splat(clamp), splat(clamp), select<T>(y < splat(-clamp), splat(-clamp), y));
    }
    // v times the derivative; it passes at the clamp itself, and does not at NaN.
    Vector<T> passed(Vector<T> v, Vector<T> z) const {
        const Vector<T> slope_there = factor(z);
        if (clamp < T(0)) return v * slope_there;
        const Vector<T> y = z * slope_there, within = select<T>(y >= splat(-clamp), v * slope_there, Vector<T>{});
        return select<T>(y <= splat(clamp), within, Vector<T>{});
    }
};

// --- the operator

inline int64_t common_multiple(int64_t a, int64_t b) {
    int64_t multiple = a;
    while (multiple % b) multiple += a;
    return multiple;
}

// What all planes and all element types have in common.
struct Plan {
    Plan(const FilteredLreluArgs& args, int64_t lanes)
        : period(common_multiple(args.signal ? common_multiple(args.x_up.factor, args.signal_up.factor)
                                             : int64_t(args.x_up.factor),
                                 args.down.factor)),
          parts(period / args.down.factor),
          x(args.x_up, period),
          signal(args.signal ? args.signal_up : args.x_up, period) {
        // An element of the result reads so many of the grid's behind it, and these so many pixels.
        const int64_t reach = ((parts - 1) * args.down.factor + args.down.filter_width - 1) / period;
        const int64_t step = ceil_div(args.down.width, parts) + reach + std::max(x.reach, signal.reach);
        layout = make_layout(step, args.batch * args.channels, lanes);
    }

    const int64_t period;  // Arrays of a row of the grid.
    const int64_t parts;   // Arrays of a row of the result.
    const Columns x, signal;
    Layout layout;
};

template <typename Element>
class FilteredLrelu {
    using T = typename Element::Math;
    using Stored = typename Element::Stored;

  public:
    FilteredLrelu(const FilteredLreluArgs& args, const Plan& plan)
        : args_(args),
          plan_(plan),
          layout_(plan.layout),
          taps_(args.down),
          mirrored_(!taps_.separable && taps_.mirrored()),
          activation_{T(args.gain), T(args.slope), T(args.clamp)},
          grid_(plan.period * layout_.size),
          kept_(taps_.separable ? plan.parts * layout_.size : grid_),
          x_up_(args.x_up, plan.x, layout_),
          activated_(taps_.separable ? grid_ : 0),
          rows_(taps_.height * kept_),
          folded_(mirrored_ ? (taps_.height + 1) / 2 * grid_ : 0),
          result_(plan.parts * layout_.size) {
        if (args.signal) {
            signal_up_ = std::make_unique<Upsampler<Element>>(args.signal_up, plan.signal, layout_);
            signal_.resize(grid_);
        }
        for (int64_t l = 0; l < taps_.width && taps_.separable; ++l) weights_x_.push_back(taps_.x(l));
        for (int64_t k = 0; k < taps_.height && !taps_.separable; ++k) {
            for (int64_t l = 0; l < taps_.width; ++l) weights_.push_back(taps_.at(k, l));
        }
    }

    // Computes planes [first, first + count), count being at most layout.planes.
    void run(int64_t first, int64_t count) {
        const int64_t factor = args_.down.factor, height = args_.down.height, width = args_.down.width;
        const int64_t parts = plan_.parts;
        x_up_.begin(args_.x, first, count, static_cast<const Stored*>(args_.b), args_.channels);
        if (signal_up_) signal_up_->begin(args_.signal, first, count, nullptr, 1);
        Stored* const y = static_cast<Stored*>(args_.y) + first * height * width;
        int64_t next = 0;  // Row of the grid.
        for (int64_t i = 0; i < height; ++i) {
            const int64_t begin = i * factor, end = begin + taps_.height;
            for (next = std::max(next, begin); next < end; ++next) keep(next);
            taps_.separable ? filter_vertically(begin) : filter(begin);
            for (int64_t plane = 0; plane < count; ++plane) {
                const T* const from = result_.data() + plane * layout_.step;
                Stored* const to = y + (plane * height + i) * width;
                const auto merging = parts == 1 ? merge<1, Element> : parts == 2 ? merge<2, Element> : merge<0, Element>;
                merging(from, layout_.size, parts, width, to);
            }
        }
    }

  private:
    T* kept(int64_t row) { return rows_.data() + row % taps_.height * kept_; }

    // Computes a row of the grid, and filters it horizontally if that is possible.
    void keep(int64_t row) {
        T* const grid = taps_.separable ? activated_.data() : kept(row);
        if (signal_up_) {
            signal_up_->write_row(row, signal_.data(), Keep<T>());
            const T* const signal = signal_.data();
            const Activation<T> activation = activation_;
            x_up_.write_row(row, grid, [activation, signal](Vector<T> z, int64_t j) {
                return activation.passed(load(signal + j), z);
            });
        } else {
            const Activation<T> activation = activation_;
            x_up_.write_row(row, grid, [activation](Vector<T> z, int64_t) { return activation.value(z); });
        }
        for (int64_t part = 0; part < plan_.parts && taps_.separable; ++part) {
            sum_.clear();
            for (int64_t l = 0; l < taps_.width; ++l) sum_.add(from(grid, part, l), weights_x_[l]);
            sum_.write(layout_.count, kept(row) + part * layout_.size);
        }
    }

    // Where in a row of the grid the elements under tap l of a part of the result begin.
    const T* from(const T* grid, int64_t part, int64_t l) const {
        const int64_t position = part * args_.down.factor + l;
        return grid + position % plan_.period * layout_.size + position / plan_.period;
    }

    void filter_vertically(int64_t first) {
        sum_.clear();
        for (int64_t k = 0; k < taps_.height; ++k) sum_.add(kept(first + k), taps_.y(k));
        for (int64_t part = 0; part < plan_.parts; ++part) {
            sum_.write(layout_.count, result_.data() + part * layout_.size);
            for (const T*& source : sum_.sources) source += layout_.size;
        }
    }

    // By a filter that is no product. If its upper half mirrors the lower one, their rows are added first.
    void filter(int64_t first) {
        const int64_t count = mirrored_ ? (taps_.height + 1) / 2 : taps_.height;
        for (int64_t k = 0; k < count && mirrored_; ++k) {
            const int64_t other = taps_.height - 1 - k;
            sum_.clear();
            sum_.add(kept(first + k), T(1));
            if (other != k) sum_.add(kept(first + other), T(1));
            sum_.write(grid_, folded_.data() + k * grid_);
        }
        for (int64_t part = 0; part < plan_.parts; ++part) {
            sum_.clear();
            for (int64_t k = 0; k < count; ++k) {
                const T* const row = mirrored_ ? folded_.data() + k * grid_ : kept(first + k);
                for (int64_t l = 0; l < taps_.width; ++l) sum_.add(from(row, part, l), weights_[k * taps_.width + l]);
            }
            sum_.write(layout_.count, result_.data() + part * layout_.size);
        }
    }

    const FilteredLreluArgs& args_;
    const Plan& plan_;
    const Layout layout_;
    const Taps<T> taps_;
    const bool mirrored_;
    const Activation<T> activation_;
    const int64_t grid_, kept_;  // Elements of a row of the grid, and of what is kept of it until no result needs it.
    Upsampler<Element> x_up_;
    std::unique_ptr<Upsampler<Element>> signal_up_;
    std::vector<T> signal_, activated_, rows_, folded_, result_, weights_x_, weights_;
    Sum<T> sum_;
};

}  // namespace
}  // namespace stylegan_ops

// Returns 0, or 1 for a dtype that it does not know.
SGO_EXPORT int stylegan_ops_filtered_lrelu(const FilteredLreluArgs* args) {
    using namespace stylegan_ops;
    const int64_t planes = args->batch * args->channels, numel = planes * args->down.height * args->down.width;
    if (numel == 0) return 0;
    const auto run = [&](auto element) {
        using Element = decltype(element);
        expect_writes(args->y, numel * int64_t(sizeof(typename Element::Stored)));
        const Plan plan(*args, kLanes<typename Element::Math>);
        const int64_t together = plan.layout.planes;
        // The grid has several elements for each of the result, and each is a sum of several.
        parallel_blocks(ceil_div(planes, together), 64 * numel, args->num_threads, [&](int64_t group, int64_t end) {
            FilteredLrelu<Element> filter(*args, plan);
            for (; group < end; ++group) {
                filter.run(group * together, std::min(together, planes - group * together));
            }
        });
    };
    return dispatch(args->dtype, run) ? 0 : 1;
}
