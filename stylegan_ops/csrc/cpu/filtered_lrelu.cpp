// Upsample, activate, downsample, row by row: the finer grid, several times as large as input and result, never leaves
// the first caches. With a second input, that input passes and the activation of the first only decides how much of it.
//
// Along a row, the grid is kept as `period` arrays, the period being a multiple of both resampling factors: array s holds
// the elements s, s + period, ... The taps that meet a pixel are then the same for all elements of an array, and both
// filters are weighted sums of contiguous memory. Inputs are dealt out in the same way, and results put together again.
//
// An array holds the rows of several planes, one behind the other, with zeros between them where a filter reaches beyond
// an image. Sums of short rows would wait for each other's additions, and setting them up would take most of the time.
//
// The filters of StyleGAN3 have a path of their own, in which several sums are computed at once (filtered_lrelu_sums.h). It
// also uses that a radial filter is the same upside down and backwards: rows that get the same weights are added first.
#include <memory>
#include <vector>

#include "filtered_lrelu_grid.h"
#include "parallel.h"

namespace stylegan_ops {
namespace {

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

template <typename T>
struct Activate {
    Activation<T> activation;

    Vector<T> operator()(Vector<T> z, int64_t) const { return activation.value(z); }
};

template <typename T>
struct Pass {
    Activation<T> activation;
    const T* signal;

    Vector<T> operator()(Vector<T> z, int64_t i) const { return activation.passed(load(signal + i), z); }
};

// --- the operator

inline int64_t common_multiple(int64_t a, int64_t b) {
    int64_t multiple = a;
    while (multiple % b) multiple += a;
    return multiple;
}

// What all planes and all element types have in common.
struct Plan {
    Plan(const FilteredLreluArgs& args, int64_t lanes, bool may_sum_together)
        : together(may_sum_together && is_common(args.x_up) && is_common(args.down) &&
                   (!args.signal || is_common(args.signal_up))),
          period(together ? kPeriod : least_period(args)),
          parts(period / args.down.factor),
          x(args.x_up, period),
          signal(args.signal ? args.signal_up : args.x_up, period) {
        // An element of the result reads so many of the grid's behind it, and these so many pixels.
        const int64_t reach = ((parts - 1) * args.down.factor + args.down.filter_width - 1) / period;
        const int64_t step = ceil_div(args.down.width, parts) + reach + std::max(x.reach, signal.reach);
        layout = make_layout(step, period, args.batch * args.channels, lanes);
    }

    static int64_t least_period(const FilteredLreluArgs& args) {
        const int64_t up = args.signal ? common_multiple(args.x_up.factor, args.signal_up.factor) : args.x_up.factor;
        return common_multiple(up, args.down.factor);
    }

    const bool together;   // Sums are computed several at once.
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
          symmetry_(taps_.symmetry()),
          activation_{T(args.gain), T(args.slope), T(args.clamp)},
          grid_(plan.period * layout_.size),
          kept_(taps_.separable ? plan.parts * layout_.size : grid_),
          x_up_(args.x_up, plan.x, layout_, plan.together),
          activated_(taps_.separable ? grid_ + kLanes<T> : 0),
          rows_(taps_.height * kept_ + kLanes<T>),
          folded_(symmetry_ == Symmetry::kTapsAndRows && !plan.together ? taps_.height / 2 * grid_ : 0),
          result_(plan.parts * layout_.size) {
        if (args.signal) {
            signal_up_ = std::make_unique<Upsampler<Element>>(args.signal_up, plan.signal, layout_, plan.together);
            signal_.resize(grid_);
        }
        for (int64_t s = 0; s < plan.period; ++s) offsets_.push_back(s * layout_.size);
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
                const auto merging = parts == 1   ? merge<1, Element>
                                     : parts == 2 ? merge<2, Element>
                                     : parts == 4 ? merge<4, Element>
                                                  : merge<0, Element>;
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
            x_up_.write_row(row, grid, Pass<T>{activation_, signal_.data()});
        } else {
            x_up_.write_row(row, grid, Activate<T>{activation_});
        }
        if (!taps_.separable) return;
        if (plan_.together) {
            sources_.assign(1, {grid, weights_x_.data(), nullptr});
            return sum_together(kept(row));
        }
        for (int64_t part = 0; part < plan_.parts; ++part) {
            sum_.clear();
            const int64_t first = part * args_.down.factor;
            for (int64_t l = 0; l < taps_.width; ++l) sum_.add(grid + offset_of(first + l), weights_x_[l]);
            sum_.write(layout_.count, kept(row) + part * layout_.size);
        }
    }

    // Where in a row of the grid the elements from a position on begin.
    int64_t offset_of(int64_t position) const {
        return position % plan_.period * layout_.size + position / plan_.period;
    }

    // Writes sums of sources to all parts of a row.
    void sum_together(T* out) {
        switch (symmetry_) {
            case Symmetry::kNone: return sum_together<Symmetry::kNone>(out);
            case Symmetry::kTaps: return sum_together<Symmetry::kTaps>(out);
            case Symmetry::kTapsAndRows: return sum_together<Symmetry::kTapsAndRows>(out);
        }
    }
    template <Symmetry symmetry>
    void sum_together(T* out) {
        if constexpr (kTogether<T>) {
            const auto sum = args_.down.factor == 2
                                 ? correlate<2 * kPhaseTaps, 2, kPeriod / 2, kPeriod, symmetry, T, Keep<T>>
                                 : correlate<4 * kPhaseTaps, 4, kPeriod / 4, kPeriod, symmetry, T, Keep<T>>;
            sum(sources_, offsets_.data(), layout_.count, out, layout_.size, Keep<T>());
        }
    }

    void filter_vertically(int64_t first) {
        sum_.clear();
        for (int64_t k = 0; k < taps_.height; ++k) sum_.add(kept(first + k), taps_.y(k));
        sum_.write(kept_, result_.data());
    }

    // By a filter that is no product. If its upper half mirrors the lower one, their rows are added first.
    void filter(int64_t first) {
        const bool mirrored = symmetry_ == Symmetry::kTapsAndRows;
        sources_.clear();
        for (int64_t k = 0; k < (mirrored ? taps_.height / 2 : taps_.height); ++k) {
            sources_.push_back({kept(first + k), &weights_[k * taps_.width], kept(first + taps_.height - 1 - k)});
        }
        if (plan_.together) return sum_together(result_.data());
        T* folded = folded_.data();
        for (Source<T>& source : sources_) {
            if (!mirrored) break;
            for (int64_t i = 0; i < grid_; i += kLanes<T>) {
                store(folded + i, load(source.row + i) + load(source.mirrored + i));
            }
            source.row = folded;
            folded += grid_;
        }
        for (int64_t part = 0; part < plan_.parts; ++part) {
            sum_.clear();
            for (const Source<T>& source : sources_) {
                for (int64_t l = 0; l < taps_.width; ++l) {
                    sum_.add(source.row + offset_of(part * args_.down.factor + l), source.weights[l]);
                }
            }
            sum_.write(layout_.count, result_.data() + part * layout_.size);
        }
    }

    const FilteredLreluArgs& args_;
    const Plan& plan_;
    const Layout layout_;
    const Taps<T> taps_;
    const Symmetry symmetry_;
    const Activation<T> activation_;
    const int64_t grid_, kept_;  // Elements of a row of the grid, and of what is kept of it until no result needs it.
    Upsampler<Element> x_up_;
    std::unique_ptr<Upsampler<Element>> signal_up_;
    Buffer<T> signal_, activated_, rows_, folded_, result_;
    std::vector<T> weights_x_, weights_;
    std::vector<int64_t> offsets_;
    std::vector<Source<T>> sources_;
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
        using T = typename Element::Math;
        expect_writes(args->y, numel * int64_t(sizeof(typename Element::Stored)));
        const Plan plan(*args, kLanes<T>, kTogether<T>);
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
