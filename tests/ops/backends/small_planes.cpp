// upfirdn2d_small.h on random images of exactly the memory that they need, for the sanitizers, against the definition.
// Prints how many it computed. With an argument, planes that are not copied to where more memory is: an error.
#include <cmath>
#include <cstdio>
#include <random>

#include "upfirdn2d_small.h"

using namespace stylegan_ops;

static std::mt19937 engine(0);
static int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }

template <typename Element>
std::vector<typename Element::Stored> draw_values(int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<typename Element::Stored> values;
    for (int64_t i = 0; i < count; ++i) values.push_back(Element::store(normal(engine)));
    values.shrink_to_fit();
    return values;
}

static double tap(const std::vector<float>& taps, int64_t k) { return k >= 0 && k < int64_t(taps.size()) ? taps[k] : 0.0; }

// The largest error of any output, where 1 is typical; -1 where the small path declines, -2 for no such image.
template <typename Element>
double error_of_random_image() {
    Upfirdn2dArgs args{};
    const int size = draw(0, 2) > 0 ? 4 : 2;
    const auto taps = draw_values<Float32>(size);
    args.filter = taps.data(), args.filter_height = args.filter_width = size;
    args.separable = args.flip = args.num_threads = 1, args.gain = 1;
    args.batch = draw(1, 2), args.channels = draw(1, 9), args.x_height = draw(1, 40), args.x_width = draw(1, 70);
    const int64_t kind = draw(0, 3);
    args.up_x = args.up_y = kind == 1 ? 2 : 1, args.down_x = args.down_y = kind == 2 ? 2 : 1;
    if (kind == 3) args.up_y = int(draw(1, 3)), args.down_y = int(draw(1, 3));
    args.pad_x0 = int(draw(-3, 6)), args.pad_y0 = int(draw(-3, 6));
    args.y_width = (args.x_width * args.up_x + args.pad_x0 + draw(-3, 6) - size) / args.down_x + 1;
    args.y_height = (args.x_height * args.up_y + args.pad_y0 + draw(-3, 6) - size) / args.down_y + 1;
    if (args.y_width < 1 || args.y_height < 1) return -2;
    args.x_stride[3] = 1;
    const int64_t planes = args.batch * args.channels, in = args.x_height * args.x_width;
    const auto x = draw_values<Element>(planes * in);
    auto y = draw_values<Element>(planes * args.y_height * args.y_width);
    args.x = x.data(), args.y = y.data();
    if (!filter_if_small<Element>(args, make_plan<typename Element::Math>(args))) return -1;
    double worst = 0;
    for (size_t i = 0; i < y.size(); ++i) {
        const int64_t column = int64_t(i) % args.y_width, row = int64_t(i) / args.y_width % args.y_height;
        const int64_t left = column * args.down_x - args.pad_x0, top = row * args.down_y - args.pad_y0;
        const auto* const plane = x.data() + int64_t(i) / (args.y_width * args.y_height) * in;
        double sum = 0;
        for (int64_t r = 0; r < args.x_height; ++r) {
            const double weight = tap(taps, r * args.up_y - top);
            for (int64_t c = 0; weight != 0 && c < args.x_width; ++c) {
                sum += weight * tap(taps, c * args.up_x - left) * Element::load(plane[r * args.x_width + c]);
            }
        }
        worst = std::max(worst, std::abs(sum - Element::load(y[i])) / (1 + std::abs(sum)));
    }
    return worst;
}

template <typename Element>
bool check(const char* name, double tolerance) {
    int done = 0;
    for (int i = 0; i < 400; ++i) {
        const double error = error_of_random_image<Element>();
        done += error >= 0;
        if (error > tolerance) return std::printf("%s, image %d is off by %g\n", name, i, error), false;
    }
    std::printf("%s %d\n", name, done);
    return true;
}

static void read_beside_the_planes() {
    Upfirdn2dArgs args{};
    const std::vector<float> taps(4, 1), x(17 * 17, 1);
    std::vector<float> y(16 * 16);
    args.x = x.data(), args.y = y.data(), args.filter = taps.data(), args.filter_width = 4, args.separable = 1;
    args.batch = args.channels = 1, args.x_height = args.x_width = 17, args.y_height = args.y_width = 16;
    args.up_x = args.up_y = args.down_x = args.down_y = 1, args.pad_x0 = args.pad_y0 = 1, args.gain = 1;
    args.x_stride[3] = 1;
    const auto plan = make_plan<float>(args);
    SmallFilter<4, Step::kPlain, 4>(args, plan).run(x.data(), 1, y.data());
}

int main(int count, char**) {
    if (count > 1) return read_beside_the_planes(), 0;
    return check<Float32>("float32", 1e-5) && check<BFloat16>("bfloat16", 0.01) ? 0 : 1;
}
