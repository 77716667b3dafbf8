// 3 x 3 convolutions of zero-padded images of unchanged size, and their derivatives, by Winograd's F(4x4, 3x3).
#include <vector>

#include "parallel.h"
#include "winograd.h"

namespace stylegan_ops {
namespace {

constexpr int kPoints = 36;
constexpr int64_t kApart = 16;  // Elements between what would share one place in the cache, a power of two apart.

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// How images are cut into tiles of 4 x 4 results, which are numbered row by row.
struct Tiling {
    int64_t height, width, rows, columns, count;

    explicit Tiling(const Conv3x3Args& args)
        : height(args.height),
          width(args.width),
          rows((args.height + 3) / 4),
          columns((args.width + 3) / 4),
          count(args.batch * rows * columns) {}
};

constexpr int64_t kPerVec = kLanes / 4;  // tiles whose rows fill a vector

// A block of tiles of one channel, copied to where all tiles have zeros or neighbors around them.
template <int64_t Block>
class Pixels {
   public:
    explicit Pixels(const Tiling& tiling)
        // At worst, tiles stand alone: 6 x 8 pixels. A vector may be read at the last one.
        : tiling_(tiling), memory_(48 * Block + 2 * kLanes), lines_(6 * 8 * Block) {
        std::memset(memory_.get(), 0, sizeof(float) * (48 * Block + 2 * kLanes));
        std::memset(lines_.get(), 0, sizeof(float) * 6 * 8 * Block);
    }

    // Go to the tiles [begin, begin + Block), of which the last ones may not exist.
    void move(int64_t begin) {
        strips_.clear();
        count_ = std::min(Block, tiling_.count - begin);
        in_vectors_ = tiling_.columns % kPerVec == 0 && begin % kPerVec == 0;
        int64_t offset = 0;
        for (int64_t tile = 0; tile < count_;) {
            const int64_t number = begin + tile, column = number % tiling_.columns;
            const int64_t row = number / tiling_.columns % tiling_.rows;
            const int64_t image = number / tiling_.columns / tiling_.rows;
            const int64_t together = std::min(tiling_.columns - column, count_ - tile);
            const bool whole = together == tiling_.columns;
            if (whole && !strips_.empty() && strips_.back().whole && strips_.back().image == image) {
                strips_.back().rows += 4;  // Below what came before.
            } else {
                if (!strips_.empty()) offset += strips_.back().rows * strips_.back().step;
                strips_.push_back({image, 4 * row - 1, 6, 4 * column, 4 * together, offset, 4 * together + 4, whole});
            }
            const Strip& strip = strips_.back();
            for (int64_t k = 0; k < together; ++k, ++tile) {
                from_[tile] = strip.offset + (strip.rows - 6) * strip.step + 4 * k;
                step_[tile] = strip.step;
                image_[tile] = image;
                place_[tile] = 4 * row * tiling_.width + 4 * (column + k);
            }
        }
        for (int64_t tile = count_; tile < Block; ++tile) from_[tile] = 0, step_[tile] = 0;
    }

    // The pixels of a channel, given that of the first image, to tiles[(i * Size + j) * Block + tile]: 6 x 6 with the
    // neighbors of a tile, or its own 4 x 4.
    template <int Size>
    void gather(const float* channel, int64_t image_step, float* tiles) {
        for (const Strip& strip : strips_) copy(strip, channel + strip.image * image_step);
        const auto row_of = [&](int64_t tile, int i) {
            return memory_.get() + from_[tile] + (Size == 6 ? i * step_[tile] : (i + 1) * step_[tile] + 1);
        };
        if (!in_vectors_) {
            // All is written before any is read, since processors read slowly what was just written in pieces.
            for (int i = 0; i < Size; ++i) {
                float* const first = lines_.get() + i * 8 * Block;
                for (int64_t tile = 0; tile < count_; ++tile) {
                    const float* const row = row_of(tile, i);
                    std::memcpy(first + 4 * tile, row, 4 * sizeof(float));
                    if (Size == 6) std::memcpy(first + 4 * (Block + tile), row + 4, 4 * sizeof(float));
                }
            }
        }
        for (int i = 0; i < Size; ++i) {
            for (int64_t tile = 0; tile < Block; tile += kLanes) {
                Vec parts[4], next[4];
                for (int part = 0; part < 4; ++part) {
                    const int64_t at = tile + part * kPerVec;
                    const float* const line = lines_.get() + i * 8 * Block + 4 * at;
                    const float* const row = in_vectors_ ? row_of(at, i) : line;
                    parts[part] = load_vec(row);
                    if (Size == 6) next[part] = load_vec(in_vectors_ ? row + 4 : line + 4 * Block);
                }
                float* const to = tiles + i * Size * Block + tile;
                deal_four<4>(parts, to, Block);
                if (Size == 6) deal_four<2>(next, to + 4 * Block, Block);
            }
        }
    }

    // The inverse for tiles of 4 x 4 results.
    void scatter(const float* tiles, float* channel, int64_t image_step) {
        for (int i = 0; i < 4; ++i) {
            float* const line = lines_.get() + i * 4 * Block;
            for (int64_t tile = 0; tile < Block; tile += kLanes) {
                Vec parts[4];
                merge_four(tiles + i * 4 * Block + tile, Block, parts);
                for (int part = 0; part < 4; ++part) {
                    const int64_t at = tile + part * kPerVec;
                    if (!in_vectors_ || tiling_.width % 4 != 0 || tiling_.height % 4 != 0) {
                        store_vec(line + 4 * at, parts[part]);
                    } else if (at < count_) {
                        store_vec(channel + image_[at] * image_step + place_[at] + i * tiling_.width, parts[part]);
                    }
                }
            }
        }
        if (in_vectors_ && tiling_.width % 4 == 0 && tiling_.height % 4 == 0) return;
        for (int64_t tile = 0; tile < count_; ++tile) {
            float* const to = channel + image_[tile] * image_step + place_[tile];
            const int64_t row = place_[tile] / tiling_.width, column = place_[tile] % tiling_.width;
            for (int i = 0; i < 4 && row + i < tiling_.height; ++i) {
                const float* const from = lines_.get() + i * 4 * Block + 4 * tile;
                if (column + 4 <= tiling_.width) {
                    std::memcpy(to + i * tiling_.width, from, 4 * sizeof(float));
                } else {
                    for (int64_t j = 0; column + j < tiling_.width; ++j) to[i * tiling_.width + j] = from[j];
                }
            }
        }
    }

   private:
    // Neighboring tiles of one image, with a border of one pixel: rows from first_row on, columns from column - 1 on.
    struct Strip {
        int64_t image, first_row, rows, column, width, offset, step;
        bool whole;  // rows of tiles
    };

    void copy(const Strip& strip, const float* plane) {
        const int64_t width = std::min(strip.width, tiling_.width - strip.column);
        for (int64_t i = 0; i < strip.rows; ++i) {
            float* const to = memory_.get() + strip.offset + i * strip.step;
            const int64_t row = strip.first_row + i;
            if (row < 0 || row >= tiling_.height) {
                std::memset(to, 0, size_t(strip.width + 2) * sizeof(float));
                continue;
            }
            const float* const from = plane + row * tiling_.width + strip.column;
            to[0] = strip.column > 0 ? from[-1] : 0.0f;
            int64_t j = 0;
            for (; j + kLanes <= width; j += kLanes) store_vec(to + 1 + j, load_vec(from + j));
            for (; j + 4 <= width; j += 4) std::memcpy(to + 1 + j, from + j, 4 * sizeof(float));
            for (; j < width; ++j) to[1 + j] = from[j];
            for (; j <= strip.width; ++j) to[1 + j] = strip.column + j < tiling_.width ? from[j] : 0.0f;
        }
    }

    const Tiling tiling_;
    const Buffer memory_, lines_;
    std::vector<Strip> strips_;
    int64_t count_ = 0;
    bool in_vectors_ = false;  // tiles that fill vectors lie side by side
    int64_t from_[Block], step_[Block], image_[Block], place_[Block];
};

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
        const Buffer values(kPoints * point_step), products(kPoints * kRows * kBlock), tiles(kPoints * kBlock);
        Pixels<kBlock> block_pixels(tiling);
        for (int64_t block = first; block < last; ++block) {
            block_pixels.move(block * kBlock);
            // At each point_step of values, [column / kColumns][channel][column % kColumns]
            for (int64_t i = 0; i < in; ++i) {
                block_pixels.gather<6>(x + i * pixels, in * pixels, tiles.get());
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
                        multiply<2>(left, kRows, 1, values.get() + p * point_step + column * in, kColumns, in, sums);
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
                    block_pixels.scatter(result, y + channel * pixels, out * pixels);
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
    multiply<Vectors>(left, 1, kLongBlock, right, Vectors * kLanes, count, registers);
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
        const int64_t tiles_here = std::min(kLongBlock, tiling.count - begin);
        const int64_t used = round_up(tiles_here, kLanes);
        const int64_t work = tiles_here * 16 * (in + out);
        parallel_blocks(in_panels + out_panels, work, args.num_threads, [&](int64_t first, int64_t last) {
            const Buffer tiles(kPoints * kLongBlock), values(kPoints * values_step);
            Pixels<kLongBlock> block_pixels(tiling);
            block_pixels.move(begin);
            for (int64_t panel = first; panel < last; ++panel) {
                if (panel >= in_panels) {
                    for (int64_t r = 0; r < kRows; ++r) {
                        const int64_t channel = (panel - in_panels) * kRows + r;
                        if (channel < out) {
                            block_pixels.gather<4>(dy + channel * pixels, out * pixels, tiles.get());
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
                        block_pixels.gather<6>(x + channel * pixels, in * pixels, tiles.get());
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
