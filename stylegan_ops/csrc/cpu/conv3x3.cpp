// 3 x 3 convolutions of zero-padded images of unchanged size, and their derivatives, by Winograd's F(4x4, 3x3).
#include <memory>
#include <vector>

#include "parallel.h"
#include "winograd.h"

namespace stylegan_ops {
namespace {

constexpr int kPoints = 36;
constexpr int64_t kColumns = 2 * kLanes;  // of a product that is summed in registers
constexpr int64_t kApart = 16;  // Elements between what would share one place in the cache, a power of two apart.

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Memory that begins where a cache line does, without a value.
class Buffer {
   public:
    explicit Buffer(int64_t count) : memory_(new char[size_t(count) * sizeof(float) + 64]) {
        const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.get());
        begin_ = reinterpret_cast<float*>((address + 63) & ~uintptr_t(63));
    }
    float* get() const { return begin_; }

   private:
    std::unique_ptr<char[]> memory_;
    float* begin_;
};

// Neighbouring tiles of one row of tiles of one image.
struct Run {
    int64_t image;
    int64_t row;     // of pixels, where the tiles of results begin
    int64_t column;  // likewise
    int64_t count;
    int64_t first;  // which of a block's tiles is the first
};

struct Tiling {
    int64_t height, width, rows, columns, count;

    explicit Tiling(const Conv3x3Args& args)
        : height(args.height),
          width(args.width),
          rows((args.height + 3) / 4),
          columns((args.width + 3) / 4),
          count(args.batch * rows * columns) {}

    // The tiles [begin, begin + size), of which those that do not exist are left out.
    std::vector<Run> runs(int64_t begin, int64_t size) const {
        std::vector<Run> result;
        const int64_t end = std::min(begin + size, count);
        for (int64_t tile = begin; tile < end;) {
            const int64_t column = tile % columns, row = tile / columns % rows, image = tile / columns / rows;
            const int64_t together = std::min(columns - column, end - tile);
            result.push_back({image, 4 * row, 4 * column, together, tile - begin});
            tile += together;
        }
        return result;
    }
};

// Pixels [begin, begin + count) of a row of `width`, zeros outside.
inline void copy_row(const float* row, int64_t width, int64_t begin, int64_t count, float* to) {
    const int64_t whole = std::min(count, width - begin);
    int64_t done = std::max<int64_t>(0, -begin);
    for (int64_t k = 0; k < done; ++k) to[k] = 0;
    for (; done + kLanes <= whole; done += kLanes) store_vec(to + done, load_vec(row + begin + done));
    for (; done + 4 <= whole; done += 4) std::memcpy(to + done, row + begin + done, 4 * sizeof(float));
    for (; done < whole; ++done) to[done] = row[begin + done];
    for (; done < count; ++done) to[done] = 0;
}

// Elements that `gather` works in.
constexpr int64_t lines_size(int64_t block) { return 6 * 8 * block; }

// Pixels [row + Offset, ... + Size) x likewise of each tile to tiles[(i * Size + j) * block + tile]. All of `lines` must
// have a value.
template <int Size, int Offset>
void gather(const float* images, int64_t image_step, const Tiling& tiling, const std::vector<Run>& runs, int64_t block,
            float* tiles, float* lines) {
    // A tile's row as its first four pixels and, elsewhere, the next four. Written long before they are read, since
    // processors read slowly what was just written in other pieces.
    for (const Run& run : runs) {
        const float* const plane = images + run.image * image_step;
        const int64_t left = run.column + Offset;
        for (int i = 0; i < Size; ++i) {
            const int64_t row = run.row + Offset + i;
            float* const first = lines + i * 8 * block + 4 * run.first;
            float* const next = first + 4 * block;
            if (row < 0 || row >= tiling.height) {
                std::memset(first, 0, size_t(run.count) * 4 * sizeof(float));
                if (Size > 4) std::memset(next, 0, size_t(run.count) * 4 * sizeof(float));
                continue;
            }
            const float* const from = plane + row * tiling.width;
            copy_row(from, tiling.width, left, 4 * run.count, first);
            if (Size > 4) copy_row(from, tiling.width, left + 4, 4 * run.count, next);
        }
    }
    for (int i = 0; i < Size; ++i) {
        const float* const first = lines + i * 8 * block;
        for (int64_t tile = 0; tile < block; tile += kLanes) {
            float* const to = tiles + i * Size * block + tile;
            deal_four<4>(first + 4 * tile, to, block);
            if (Size > 4) deal_four<2>(first + 4 * block + 4 * tile, to + 4 * block, block);
        }
    }
}

// The inverse for tiles of results.
void scatter(const float* tiles, float* images, int64_t image_step, const Tiling& tiling, const std::vector<Run>& runs,
             int64_t block, float* lines) {
    for (int i = 0; i < 4; ++i) {
        for (int64_t tile = 0; tile < block; tile += kLanes) {
            merge_four(tiles + i * 4 * block + tile, block, lines + 4 * (i * block + tile));
        }
    }
    for (const Run& run : runs) {
        float* const plane = images + run.image * image_step + run.column;
        const int64_t length = std::min(4 * run.count, tiling.width - run.column);
        for (int i = 0; i < 4 && run.row + i < tiling.height; ++i) {
            const float* const from = lines + 4 * (i * block + run.first);
            float* const to = plane + (run.row + i) * tiling.width;
            int64_t done = 0;
            for (; done + kLanes <= length; done += kLanes) store_vec(to + done, load_vec(from + done));
            for (; done + 4 <= length; done += 4) std::memcpy(to + done, from + done, 4 * sizeof(float));
            for (; done < length; ++done) to[done] = from[done];
        }
    }
}

// Gathered tiles, of which `block` lie side by side, to values at the points, `step` apart.
template <typename Transform>
void transform_tiles(const float* tiles, int64_t block, float* values, int64_t step) {
    constexpr int from = Transform::from, to = Transform::to;
    for (int64_t tile = 0; tile < block; tile += kLanes) {
        transform<Transform, Vec>(
            [&](int i, int j) { return load_vec(tiles + (i * from + j) * block + tile); },
            [&](int i, int j, Vec v) { store_vec(values + (i * to + j) * step + tile, v); });
    }
}

// rows[r][column] += sum over k of left[k * left_k + r * left_r] * right[k * Vectors * kLanes + column]
template <int Vectors>
inline void multiply(const float* left, int64_t left_k, int64_t left_r, const float* right, int64_t count,
                     Vec (&sums)[kRows][Vectors]) {
    for (int64_t k = 0; k < count; ++k, left += left_k, right += Vectors * kLanes) {
        Vec values[Vectors];
        for (int v = 0; v < Vectors; ++v) values[v] = load_vec(right + v * kLanes);
        for (int r = 0; r < kRows; ++r) {
            const float factor = left[r * left_r];
            for (int v = 0; v < Vectors; ++v) sums[r][v] = sums[r][v] + factor * values[v];
        }
    }
}

// --- the convolution

constexpr int64_t kBlock = 32;  // tiles at a time; a multiple of kColumns

// Filters at the points, as [out_channels / kRows][point][in_channels][kRows], points being `step` apart; channels
// beyond are zero.
void transform_filters(const Conv3x3Args& args, float* result, int64_t step) {
    const int64_t in = args.in_channels, out = args.out_channels;
    const float* const w = static_cast<const float*>(args.w);
    const int64_t blocks = (out + kRows - 1) / kRows;
    parallel_blocks(blocks, blocks * in * 512, args.num_threads, [&](int64_t first, int64_t last) {
        for (int64_t block = first; block < last; ++block) {
            for (int64_t i = 0; i < in; ++i) {
                float taps[9][kRows] = {};
                for (int64_t r = 0; r < kRows && block * kRows + r < out; ++r) {
                    const int64_t o = block * kRows + r;
                    // As stored, or those of the transposed convolution.
                    const float* const from = w + (args.transposed ? i * out + o : o * in + i) * 9;
                    for (int k = 0; k < 9; ++k) taps[k][r] = from[args.transposed ? 8 - k : k];
                }
                transform<FilterTransform, RowVec>(
                    [&](int y, int x) { return load_vec<RowVec>(taps[y * 3 + x]); },
                    [&](int y, int x, RowVec v) {
                        store_vec(result + (block * kPoints + y * 6 + x) * step + i * kRows, v);
                    });
            }
        }
    });
}

void convolve(const Conv3x3Args& args) {
    const Tiling tiling(args);
    const int64_t in = args.in_channels, out = args.out_channels, pixels = args.height * args.width;
    const int64_t out_blocks = (out + kRows - 1) / kRows;
    const int64_t filter_step = in * kRows + kApart, point_step = in * kBlock + kApart;
    const float* const x = static_cast<const float*>(args.x);
    const float* const bias = static_cast<const float*>(args.bias);
    float* const y = static_cast<float*>(args.y);
    float one[kLanes];
    std::fill(one, one + kLanes, 1.0f);
    const Vec ones = load_vec(one);
    const Buffer filters(out_blocks * kPoints * filter_step);
    transform_filters(args, filters.get(), filter_step);
    expect_writes(y, args.batch * out * pixels * int64_t(sizeof(float)));
    const int64_t blocks = (tiling.count + kBlock - 1) / kBlock;
    parallel_blocks(blocks, tiling.count * 16 * (in + out) * 8, args.num_threads, [&](int64_t first, int64_t last) {
        const Buffer values(kPoints * point_step), products(kPoints * kRows * kBlock), tiles(kPoints * kBlock),
            lines(lines_size(kBlock));
        std::memset(lines.get(), 0, sizeof(float) * lines_size(kBlock));
        for (int64_t block = first; block < last; ++block) {
            const std::vector<Run> runs = tiling.runs(block * kBlock, kBlock);
            // At each point_step of values, [column / kColumns][channel][column % kColumns]
            for (int64_t i = 0; i < in; ++i) {
                gather<6, -1>(x + i * pixels, in * pixels, tiling, runs, kBlock, tiles.get(), lines.get());
                for (int64_t column = 0; column < kBlock; column += kLanes) {
                    const int64_t panel = column / kColumns;
                    float* const to = values.get() + (panel * in + i) * kColumns + column % kColumns;
                    transform<InputTransform, Vec>(
                        [&](int r, int c) { return load_vec(tiles.get() + (r * 6 + c) * kBlock + column); },
                        [&](int r, int c, Vec v) { store_vec(to + (r * 6 + c) * point_step, v); });
                }
            }
            for (int64_t o = 0; o < out_blocks; ++o) {
                for (int p = 0; p < kPoints; ++p) {
                    const float* const left = filters.get() + (o * kPoints + p) * filter_step;
                    for (int64_t column = 0; column < kBlock; column += kColumns) {
                        Vec sums[kRows][2] = {};
                        multiply<2>(left, kRows, 1, values.get() + p * point_step + column * in, in, sums);
                        float* const to = products.get() + p * kRows * kBlock + column;
                        for (int r = 0; r < kRows; ++r) {
                            store_vec(to + r * kBlock, sums[r][0]);
                            store_vec(to + r * kBlock + kLanes, sums[r][1]);
                        }
                    }
                }
                for (int64_t r = 0; r < kRows && o * kRows + r < out; ++r) {
                    const int64_t channel = o * kRows + r;
                    const float* const from = products.get() + r * kBlock;
                    const Vec shift = (bias == nullptr ? 0.0f : bias[channel]) * ones;
                    float result[16 * kBlock];
                    for (int64_t column = 0; column < kBlock; column += kLanes) {
                        transform<OutputTransform, Vec>(
                            [&](int i, int j) { return load_vec(from + (i * 6 + j) * kRows * kBlock + column); },
                            [&](int i, int j, Vec v) { store_vec(result + (i * 4 + j) * kBlock + column, v + shift); });
                    }
                    scatter(result, y + channel * pixels, out * pixels, tiling,
                            runs, kBlock, lines.get());
                }
            }
        }
    });
}

// --- the gradient of the filters

constexpr int64_t kLongBlock = 128;  // tiles at a time, whose products are summed in one go

template <int Vectors>
void add_products(const float* left, const float* right, int64_t count, float* sums, int64_t step) {
    Vec registers[kRows][Vectors];
    for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < Vectors; ++v) registers[r][v] = load_vec(sums + r * step + v * kLanes);
    }
    multiply<Vectors>(left, 1, kLongBlock, right, count, registers);
    for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < Vectors; ++v) store_vec(sums + r * step + v * kLanes, registers[r][v]);
    }
}

void filter_gradient(const Conv3x3Args& args) {
    const Tiling tiling(args);
    const int64_t in = args.in_channels, out = args.out_channels, pixels = args.height * args.width;
    const int64_t in_padded = round_up(in, kLanes), out_padded = round_up(out, kRows);
    const float* const x = static_cast<const float*>(args.x);
    const float* const dy = static_cast<const float*>(args.w);
    float* const dw = static_cast<float*>(args.y);
    const Buffer sums(kPoints * out_padded * in_padded);
    std::memset(sums.get(), 0, sizeof(float) * size_t(kPoints * out_padded * in_padded));
    // Of x, [point][in_channels / kLanes][tile][kLanes]; of dy, [point][out_channels][tile].
    const int64_t left_step = out_padded * kLongBlock + kApart, values_step = kLanes * kLongBlock + kApart;
    const Buffer right(kPoints * in_padded * kLongBlock), left(kPoints * left_step);
    const int64_t in_panels = in_padded / kLanes, out_panels = out_padded / kRows;
    for (int64_t begin = 0; begin < tiling.count; begin += kLongBlock) {
        const std::vector<Run> runs = tiling.runs(begin, kLongBlock);
        const int64_t tiles_here = std::min(kLongBlock, tiling.count - begin);
        const int64_t used = round_up(tiles_here, kLanes);
        const int64_t work = tiles_here * 16 * (in + out);
        parallel_blocks(in_panels + out_panels, work, args.num_threads, [&](int64_t first, int64_t last) {
            const Buffer tiles(kPoints * kLongBlock), values(kPoints * values_step), lines(lines_size(kLongBlock));
            std::memset(lines.get(), 0, sizeof(float) * lines_size(kLongBlock));
            for (int64_t panel = first; panel < last; ++panel) {
                if (panel >= in_panels) {
                    for (int64_t r = 0; r < kRows; ++r) {
                        const int64_t channel = (panel - in_panels) * kRows + r;
                        if (channel < out) {
                            gather<4, 0>(dy + channel * pixels, out * pixels, tiling, runs, kLongBlock, tiles.get(),
                                         lines.get());
                        } else {
                            std::memset(tiles.get(), 0, sizeof(float) * 16 * kLongBlock);
                        }
                        transform_tiles<OutputGradient>(tiles.get(), kLongBlock, left.get() + channel * kLongBlock,
                                                        left_step);
                    }
                    continue;
                }
                for (int64_t c = 0; c < kLanes; ++c) {
                    const int64_t channel = panel * kLanes + c;
                    if (channel < in) {
                        gather<6, -1>(x + channel * pixels, in * pixels, tiling, runs, kLongBlock, tiles.get(),
                                      lines.get());
                    } else {
                        std::memset(tiles.get(), 0, sizeof(float) * kPoints * kLongBlock);
                    }
                    transform_tiles<InputTransform>(tiles.get(), kLongBlock, values.get() + c * kLongBlock,
                                                    values_step);
                }
                for (int p = 0; p < kPoints; ++p) {
                    for (int64_t tile = 0; tile < used; tile += kLanes) {
                        transpose(values.get() + p * values_step + tile, kLongBlock,
                                  right.get() + ((p * in_panels + panel) * kLongBlock + tile) * kLanes, kLanes);
                    }
                }
            }
        });
        parallel_blocks(kPoints, work * 8, args.num_threads, [&](int64_t first, int64_t last) {
            for (int64_t p = first; p < last; ++p) {
                for (int64_t o = 0; o < out_panels; ++o) {
                    for (int64_t i = 0; i < in_panels; ++i) {
                        add_products<1>(left.get() + p * left_step + o * kRows * kLongBlock,
                                        right.get() + (p * in_panels + i) * kLongBlock * kLanes, tiles_here,
                                        sums.get() + (p * out_padded + o * kRows) * in_padded + i * kLanes, in_padded);
                    }
                }
            }
        });
    }
    parallel_blocks(out, out * in * 64, args.num_threads, [&](int64_t first, int64_t last) {
        for (int64_t o = first; o < last; ++o) {
            for (int64_t i = 0; i < in; i += kLanes) {
                float result[9][kLanes];
                transform<FilterGradient, Vec>(
                    [&](int r, int c) { return load_vec(sums.get() + ((r * 6 + c) * out_padded + o) * in_padded + i); },
                    [&](int r, int c, Vec v) { store_vec(result[r * 3 + c], v); });
                for (int64_t lane = 0; lane < kLanes && i + lane < in; ++lane) {
                    for (int k = 0; k < 9; ++k) dw[(o * in + i + lane) * 9 + k] = result[k][lane];
                }
            }
        }
    });
}

}  // namespace
}  // namespace stylegan_ops

SGO_EXPORT int stylegan_ops_conv3x3(const Conv3x3Args* args) {
    using namespace stylegan_ops;
    args->filter_gradient ? filter_gradient(*args) : convolve(*args);
    return 0;
}
