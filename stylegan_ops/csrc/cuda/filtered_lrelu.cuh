// filtered_lrelu and its derivatives, as FilteredLreluArgs in abi.h defines them. A block computes a tile of y: it copies
// the pixels below to shared memory, makes its part of the finer grid there, activates it, and filters it from there.
#ifndef STYLEGAN_OPS_CUDA_FILTERED_LRELU_CUH
#define STYLEGAN_OPS_CUDA_FILTERED_LRELU_CUH

#include "common.cuh"

// The weight w[k] of abi.h, of a filter for both axes, or w[k, l]; without the gain.
__device__ __forceinline__ float axis_tap(const Resampling& args, int k) {
    return static_cast<const float*>(args.filter)[args.flip ? k : args.filter_width - 1 - k];
}

__device__ __forceinline__ float plane_tap(const Resampling& args, int k, int l) {
    if (!args.flip) {
        k = args.filter_height - 1 - k;
        l = args.filter_width - 1 - l;
    }
    return static_cast<const float*>(args.filter)[k * args.filter_width + l];
}

// The first tap that meets a pixel at a position of the grid, and how far that pixel is from `first`.
struct Meeting {
    int tap;
    int pixel;

    __device__ __forceinline__ Meeting(int position, int factor, int pad, int first) {
        tap = positive_modulo(pad - position, factor);
        pixel = (position + tap - pad) / factor - first;
    }
};

// The first pixel that positions from `position` on can meet.
__device__ __forceinline__ int first_pixel(int position, int factor, int pad) {
    const int tap = positive_modulo(pad - position, factor);
    return (position + tap - pad) / factor;
}

// How many pixels `count` neighboring positions can meet.
__device__ __forceinline__ int met_pixels(int count, int factor, int taps) { return (count + taps - 2) / factor + 1; }

// Writes grid[i, j] = then(upsampled image, i * width + j) for a part of the grid that begins at (top, left). `memory` has
// room for the pixels that it meets, and for their rows once they are filtered horizontally.
template <typename T, typename A, typename Then>
__device__ __forceinline__ void upsample(const Resampling& args, const void* images, sgo_int64 plane, A summand, int top,
                                         int left, int height, int width, A* memory, A* grid, const Then& then) {
    const int thread = static_cast<int>(threadIdx.x);
    const int row0 = first_pixel(top, args.factor, args.pad_y), column0 = first_pixel(left, args.factor, args.pad_x);
    const int rows = met_pixels(height, args.factor, args.filter_height);
    const int columns = met_pixels(width, args.factor, args.filter_width);
    const T* const image = static_cast<const T*>(images) + plane * args.height * args.width;
    for (int i = thread; i < rows * columns; i += SGO_BLOCK) {
        const int row = row0 + i / columns, column = column0 + i % columns;
        A pixel = A(0);
        if (row >= 0 && row < args.height && column >= 0 && column < args.width) {
            pixel = Element<T>::load(image[row * args.width + column]) + summand;
        }
        memory[i] = pixel;
    }
    __syncthreads();

    const A gain = static_cast<A>(args.gain);
    if (!args.separable) {
        for (int i = thread; i < height * width; i += SGO_BLOCK) {
            const Meeting y(top + i / width, args.factor, args.pad_y, row0);
            const Meeting x(left + i % width, args.factor, args.pad_x, column0);
            A sum = A(0);
            for (int k = y.tap, row = y.pixel; k < args.filter_height; k += args.factor, ++row) {
                for (int l = x.tap, column = x.pixel; l < args.filter_width; l += args.factor, ++column) {
                    sum += A(plane_tap(args, k, l)) * memory[row * columns + column];
                }
            }
            grid[i] = then(gain * sum, i);
        }
        return;
    }
    A* const filtered = memory + rows * columns;  // [rows, width]
    for (int i = thread; i < rows * width; i += SGO_BLOCK) {
        const int row = i / width;
        const Meeting x(left + i % width, args.factor, args.pad_x, column0);
        A sum = A(0);
        for (int l = x.tap, column = x.pixel; l < args.filter_width; l += args.factor, ++column) {
            sum += A(axis_tap(args, l)) * memory[row * columns + column];
        }
        filtered[i] = sum;
    }
    __syncthreads();
    for (int i = thread; i < height * width; i += SGO_BLOCK) {
        const int column = i % width;
        const Meeting y(top + i / width, args.factor, args.pad_y, row0);
        A sum = A(0);
        for (int k = y.tap, row = y.pixel; k < args.filter_height; k += args.factor, ++row) {
            sum += A(axis_tap(args, k)) * filtered[row * width + column];
        }
        grid[i] = then(gain * sum, i);
    }
}

template <typename A>
struct Unchanged {
    __device__ __forceinline__ A operator()(A value, int) const { return value; }
};

template <typename A>
struct Activated {
    A gain, slope, clamp;

    __device__ __forceinline__ A before_clamp(A z) const { return gain * (z > A(0) ? z : slope * z); }
    __device__ __forceinline__ A operator()(A z, int) const {
        const A y = before_clamp(z);
        if (clamp < A(0)) return y;
        return y > clamp ? clamp : y < -clamp ? -clamp : y;
    }
};

// What the derivative at z lets pass of the value that the grid has; it passes at the clamp itself, and not at NaN.
template <typename A>
struct Passed {
    Activated<A> activation;
    const A* grid;

    __device__ __forceinline__ A operator()(A z, int i) const {
        const A dy = grid[i] * activation.gain * (z > A(0) ? A(1) : activation.slope);
        if (activation.clamp < A(0)) return dy;
        const A y = activation.before_clamp(z);
        return y >= -activation.clamp && y <= activation.clamp ? dy : A(0);
    }
};

// Blocks count column by column of tiles, then row by row, then by planes.
template <typename T>
__device__ __forceinline__ void filtered_lrelu(const FilteredLreluArgs& args) {
    typedef typename Element<T>::Arithmetic A;
    SGO_DYNAMIC_SHARED(A, shared);  // The grid, then memory for one image or one filter at a time.
    const Resampling& down = args.down;
    const int tile_height = args.tile_height, tile_width = args.tile_width;
    const unsigned int tiles_x = static_cast<unsigned int>((down.width + tile_width - 1) / tile_width);
    const unsigned int tiles_y = static_cast<unsigned int>((down.height + tile_height - 1) / tile_height);
    const unsigned int tile_row = blockIdx.x / tiles_x;
    const sgo_int64 plane = tile_row / tiles_y;
    const int y_column = static_cast<int>(blockIdx.x - tile_row * tiles_x) * tile_width;
    const int y_row = static_cast<int>(tile_row % tiles_y) * tile_height;
    const int top = y_row * down.factor, left = y_column * down.factor;
    const int height = (tile_height - 1) * down.factor + down.filter_height;
    const int width = (tile_width - 1) * down.factor + down.filter_width;
    A* const grid = shared;
    A* const memory = shared + height * width;
    const int thread = static_cast<int>(threadIdx.x);

    const Activated<A> activation = {static_cast<A>(args.gain), static_cast<A>(args.slope),
                                     static_cast<A>(args.clamp)};
    const A bias = args.b ? Element<T>::load(static_cast<const T*>(args.b)[plane % args.channels]) : A(-0.0);
    if (args.signal) {
        upsample<T>(args.signal_up, args.signal, plane, A(-0.0), top, left, height, width, memory, grid,
                    Unchanged<A>());
        __syncthreads();
        const Passed<A> passed = {activation, grid};
        upsample<T>(args.x_up, args.x, plane, bias, top, left, height, width, memory, grid, passed);
    } else {
        upsample<T>(args.x_up, args.x, plane, bias, top, left, height, width, memory, grid, activation);
    }
    __syncthreads();

    if (down.separable) {  // memory becomes [height, tile_width].
        for (int i = thread; i < height * tile_width; i += SGO_BLOCK) {
            const A* const row = grid + i / tile_width * width + i % tile_width * down.factor;
            A sum = A(0);
            for (int l = 0; l < down.filter_width; ++l) sum += A(axis_tap(down, l)) * row[l];
            memory[i] = sum;
        }
        __syncthreads();
    }
    const A gain = static_cast<A>(down.gain);
    T* const y = static_cast<T*>(args.y) + plane * down.height * down.width;
    for (int i = thread; i < tile_height * tile_width; i += SGO_BLOCK) {
        const int row = i / tile_width, column = i % tile_width;
        if (y_row + row >= down.height || y_column + column >= down.width) continue;
        A sum = A(0);
        for (int k = 0; k < down.filter_height; ++k) {
            if (down.separable) {
                sum += A(axis_tap(down, k)) * memory[(row * down.factor + k) * tile_width + column];
                continue;
            }
            const A* const from = grid + (row * down.factor + k) * width + column * down.factor;
            for (int l = 0; l < down.filter_width; ++l) sum += A(plane_tap(down, k, l)) * from[l];
        }
        y[(y_row + row) * down.width + y_column + column] = Element<T>::store(gain * sum);
    }
}

#endif
