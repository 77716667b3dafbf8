// upfirdn2d, as Upfirdn2dArgs in abi.h defines it: one kernel for all arguments, and tiled kernels for the resampling
// factors and filter sizes of StyleGAN2. No kernel multiplies the zeros that upsampling inserts.
#ifndef STYLEGAN_OPS_CUDA_UPFIRDN2D_CUH
#define STYLEGAN_OPS_CUDA_UPFIRDN2D_CUH

#include "common.cuh"

// The weight w[k, l] of abi.h; filters are never `separable` here, cuda.py applies those in two passes.
__device__ __forceinline__ float filter_tap(const Upfirdn2dArgs& args, int k, int l) {
    if (!args.flip) {
        k = args.filter_height - 1 - k;
        l = args.filter_width - 1 - l;
    }
    return static_cast<const float*>(args.filter)[k * args.filter_width + l];
}

// One thread per element of y, in the order in which they lie in memory.
template <typename T>
__device__ __forceinline__ void upfirdn2d_generic(const Upfirdn2dArgs& args) {
    typedef typename Element<T>::Arithmetic A;
    const bool channels_last = args.y_stride[3] != 1;
    const sgo_int64 numel = args.batch * args.channels * args.y_height * args.y_width;
    const sgo_int64 threads = static_cast<sgo_int64>(gridDim.x) * SGO_BLOCK;
    for (sgo_int64 i = static_cast<sgo_int64>(blockIdx.x) * SGO_BLOCK + threadIdx.x; i < numel; i += threads) {
        // From the outermost dimension to the innermost: n, c, y, x or n, y, x, c.
        const sgo_int64 size3 = channels_last ? args.channels : args.y_width;
        const sgo_int64 size2 = channels_last ? args.y_width : args.y_height;
        const sgo_int64 size1 = channels_last ? args.y_height : args.channels;
        const sgo_int64 row3 = divide(i, size3), row2 = divide(row3, size2), n = divide(row2, size1);
        const sgo_int64 i3 = i - row3 * size3, i2 = row3 - row2 * size2, i1 = row2 - n * size1;
        const sgo_int64 c = channels_last ? i3 : i1;
        const int y_row = static_cast<int>(channels_last ? i1 : i2);
        const int y_column = static_cast<int>(channels_last ? i2 : i3);

        // The filter begins at this pixel of the upsampled image; of its taps, every up-th meets a pixel of x.
        const int top = y_row * args.down_y - args.pad_y0;
        const int left = y_column * args.down_x - args.pad_x0;
        const int first_k = positive_modulo(-top, args.up_y);
        const int first_l = positive_modulo(-left, args.up_x);
        const int first_row = (top + first_k) / args.up_y;
        const int first_column = (left + first_l) / args.up_x;
        const T* const plane = static_cast<const T*>(args.x) + n * args.x_stride[0] + c * args.x_stride[1];
        A sum = A(0);
        for (int k = first_k, row = first_row; k < args.filter_height; k += args.up_y, ++row) {
            if (row < 0 || row >= args.x_height) continue;
            for (int l = first_l, column = first_column; l < args.filter_width; l += args.up_x, ++column) {
                if (column < 0 || column >= args.x_width) continue;
                const T x = plane[row * args.x_stride[2] + column * args.x_stride[3]];
                sum += A(filter_tap(args, k, l)) * Element<T>::load(x);
            }
        }
        static_cast<T*>(args.y)[i] = Element<T>::store(static_cast<A>(args.gain) * sum);
    }
}

// Place of an element in an array [PLANES, ROWS, COLUMNS], or [ROWS, COLUMNS, PLANES] for channels_last.
struct Place {
    int plane;
    int row;
    int column;
};

template <bool CHANNELS_LAST, int PLANES, int ROWS, int COLUMNS>
struct Layout {
    static const int SIZE = PLANES * ROWS * COLUMNS;

    static __device__ __forceinline__ Place place(int i) {
        Place result;
        if (CHANNELS_LAST) {
            result.plane = i % PLANES;
            result.column = i / PLANES % COLUMNS;
            result.row = i / PLANES / COLUMNS;
        } else {
            result.column = i % COLUMNS;
            result.row = i / COLUMNS % ROWS;
            result.plane = i / COLUMNS / ROWS;
        }
        return result;
    }
    static __device__ __forceinline__ int index(int plane, int row, int column) {
        return CHANNELS_LAST ? (row * COLUMNS + column) * PLANES + plane : (plane * ROWS + row) * COLUMNS + column;
    }
};

// Images count as batch * channels planes. Where a plane begins:
template <bool CHANNELS_LAST>
__device__ __forceinline__ sgo_int64 plane_offset(const sgo_int64* stride, sgo_int64 plane, sgo_int64 channels) {
    if (!CHANNELS_LAST) return plane * stride[1];
    const sgo_int64 n = divide(plane, channels);
    return n * stride[0] + (plane - n * channels);
}

// Writes values to y[row, column + 0 ... COUNT - 1] of a plane, as far as these exist.
template <typename T, int COUNT, typename A>
__device__ __forceinline__ void store_row(const Upfirdn2dArgs& args, T* row, int column, const A (&values)[COUNT]) {
    T* const first = row + column * args.y_stride[3];
    if (COUNT > 1 && args.y_stride[3] == 1 && column >= 0 && column + COUNT <= args.y_width &&
        is_aligned(first, COUNT * sizeof(T))) {
        Pack<T, COUNT> pack;
        SGO_UNROLL
        for (int i = 0; i < COUNT; ++i) pack.element[i] = Element<T>::store(values[i]);
        *reinterpret_cast<Pack<T, COUNT>*>(first) = pack;
        return;
    }
    SGO_UNROLL
    for (int i = 0; i < COUNT; ++i) {
        if (column + i >= 0 && column + i < args.y_width) first[i * args.y_stride[3]] = Element<T>::store(values[i]);
    }
}

// A block computes a tile of y, PLANES planes deep, from the part of x below it, which it copies to shared memory.
// A thread computes patches of PATCH_HEIGHT x PATCH_WIDTH elements, PATCH_ROWS x PATCH_COLUMNS of which make a plane of
// the tile. Tiles are laid so that under the first tap of each patch lies a pixel of x: which taps meet pixels is then
// known to the compiler. The first tile may therefore begin up to UP - 1 elements before y does.
// Blocks count column by column of tiles, then row by row, then by planes.
template <typename T, int UP, int DOWN, int TAPS, bool CHANNELS_LAST, int PLANES, int PATCH_ROWS, int PATCH_COLUMNS,
          int PATCH_HEIGHT, int PATCH_WIDTH>
__device__ __forceinline__ void upfirdn2d_tiled(const Upfirdn2dArgs& args) {
    static_assert(UP == 1 || DOWN == 1, "tiles cannot be aligned with x otherwise");
    static_assert(PATCH_HEIGHT * DOWN % UP == 0 && PATCH_WIDTH * DOWN % UP == 0, "patches must stay aligned with x");
    static_assert(SGO_BLOCK % PLANES == 0, "a thread must stay on its plane in channels_last");
    typedef typename Element<T>::Arithmetic A;
    const int TILE_HEIGHT = PATCH_ROWS * PATCH_HEIGHT, TILE_WIDTH = PATCH_COLUMNS * PATCH_WIDTH;
    const int X_HEIGHT = ((TILE_HEIGHT - 1) * DOWN + TAPS - 1) / UP + 1;
    const int X_WIDTH = ((TILE_WIDTH - 1) * DOWN + TAPS - 1) / UP + 1;
    const int PATCH_X_HEIGHT = ((PATCH_HEIGHT - 1) * DOWN + TAPS - 1) / UP + 1;
    const int PATCH_X_WIDTH = ((PATCH_WIDTH - 1) * DOWN + TAPS - 1) / UP + 1;
    typedef Layout<CHANNELS_LAST, PLANES, X_HEIGHT, X_WIDTH> Pixels;
    typedef Layout<CHANNELS_LAST, PLANES, PATCH_ROWS, PATCH_COLUMNS> Patches;

    SGO_DYNAMIC_SHARED(A, shared);  // The taps, then the pixels.
    A* const taps = shared;
    A* const pixels = shared + TAPS * TAPS;

    const int lead_y = positive_modulo(-args.pad_y0, UP), lead_x = positive_modulo(-args.pad_x0, UP);
    const unsigned int tiles_x = static_cast<unsigned int>((args.y_width + lead_x + TILE_WIDTH - 1) / TILE_WIDTH);
    const unsigned int tiles_y = static_cast<unsigned int>((args.y_height + lead_y + TILE_HEIGHT - 1) / TILE_HEIGHT);
    const unsigned int tile_row = blockIdx.x / tiles_x;
    const unsigned int plane_group = tile_row / tiles_y;
    const int y_column0 = static_cast<int>(blockIdx.x - tile_row * tiles_x) * TILE_WIDTH - lead_x;
    const int y_row0 = static_cast<int>(tile_row - plane_group * tiles_y) * TILE_HEIGHT - lead_y;
    const int x_column0 = (y_column0 * DOWN - args.pad_x0) / UP;
    const int x_row0 = (y_row0 * DOWN - args.pad_y0) / UP;
    const sgo_int64 plane0 = static_cast<sgo_int64>(plane_group) * PLANES;
    const sgo_int64 planes = args.batch * args.channels;
    const int thread = static_cast<int>(threadIdx.x);

    for (int i = thread; i < TAPS * TAPS; i += SGO_BLOCK) {
        taps[i] = static_cast<A>(args.gain) * A(filter_tap(args, i / TAPS, i % TAPS));
    }
    // In channels_last a thread sees one plane only, and need not divide for each pixel.
    const sgo_int64 own_plane = plane0 + thread % PLANES;
    const sgo_int64 own_x = CHANNELS_LAST ? plane_offset<true>(args.x_stride, own_plane, args.channels) : 0;
    const sgo_int64 own_y = CHANNELS_LAST ? plane_offset<true>(args.y_stride, own_plane, args.channels) : 0;
    for (int i = thread; i < Pixels::SIZE; i += SGO_BLOCK) {
        const Place place = Pixels::place(i);
        const sgo_int64 plane = plane0 + place.plane;
        const int row = x_row0 + place.row, column = x_column0 + place.column;
        A pixel = A(0);
        if (plane < planes && row >= 0 && row < args.x_height && column >= 0 && column < args.x_width) {
            const sgo_int64 offset = CHANNELS_LAST ? own_x : plane_offset<false>(args.x_stride, plane, args.channels);
            pixel = Element<T>::load(
                static_cast<const T*>(args.x)[offset + row * args.x_stride[2] + column * args.x_stride[3]]);
        }
        pixels[i] = pixel;
    }
    __syncthreads();

    for (int i = thread; i < Patches::SIZE; i += SGO_BLOCK) {
        const Place place = Patches::place(i);
        const sgo_int64 plane = plane0 + place.plane;
        if (plane >= planes) continue;
        A sums[PATCH_HEIGHT][PATCH_WIDTH] = {};
        SGO_UNROLL
        for (int r = 0; r < PATCH_X_HEIGHT; ++r) {
            A x[PATCH_X_WIDTH];
            SGO_UNROLL
            for (int c = 0; c < PATCH_X_WIDTH; ++c) {
                x[c] = pixels[Pixels::index(place.plane, place.row * (PATCH_HEIGHT * DOWN / UP) + r,
                                            place.column * (PATCH_WIDTH * DOWN / UP) + c)];
            }
            SGO_UNROLL
            for (int v = 0; v < PATCH_HEIGHT; ++v) {
                const int k = r * UP - v * DOWN;
                if (k < 0 || k >= TAPS) continue;
                SGO_UNROLL
                for (int u = 0; u < PATCH_WIDTH; ++u) {
                    SGO_UNROLL
                    for (int c = 0; c < PATCH_X_WIDTH; ++c) {
                        const int l = c * UP - u * DOWN;
                        if (l >= 0 && l < TAPS) sums[v][u] += taps[k * TAPS + l] * x[c];
                    }
                }
            }
        }
        const sgo_int64 offset = CHANNELS_LAST ? own_y : plane_offset<false>(args.y_stride, plane, args.channels);
        const int y_row = y_row0 + place.row * PATCH_HEIGHT, y_column = y_column0 + place.column * PATCH_WIDTH;
        SGO_UNROLL
        for (int v = 0; v < PATCH_HEIGHT; ++v) {
            if (y_row + v < 0 || y_row + v >= args.y_height) continue;
            T* const row = static_cast<T*>(args.y) + offset + (y_row + v) * args.y_stride[2];
            store_row(args, row, y_column, sums[v]);
        }
    }
}

#endif
