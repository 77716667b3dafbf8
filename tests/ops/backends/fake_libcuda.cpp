// A CUDA driver for tests: one device, whose memory is that of the process and which runs kernels in the simulator.
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <set>
#include <string>
#include <vector>

typedef int (*CusimLaunch)(const char*, const unsigned int*, const unsigned int*, unsigned int, const void*,
                           unsigned long long);
static CusimLaunch cusim_launch;
static std::map<std::string, int> failures;  // Function -> error that its next call returns.
static std::vector<void*> contexts;          // The stack; the last is current.
static std::set<std::string> names;
static int primary_context, module;
static void* last_stream;

static int failure(const char* function) {
    const auto found = failures.find(function);
    if (found == failures.end()) return 0;
    const int error = found->second;
    failures.erase(found);
    return error;
}

static bool is_context_current() { return !contexts.empty() && contexts.back() == &primary_context; }

extern "C" {

void fake_use_simulator(const char* library) {
    cusim_launch = reinterpret_cast<CusimLaunch>(dlsym(dlopen(library, RTLD_NOW), "cusim_launch"));
}
void fake_fail(const char* function, int error) { failures[function] = error; }
int fake_context_count() { return static_cast<int>(contexts.size()); }
void* fake_last_stream() { return last_stream; }

int cuGetErrorString(int error, const char** text) {
    *text = error == 100 ? "no CUDA-capable device is detected" : error == 201 ? "invalid device context"
          : error == 500 ? "named symbol not found" : nullptr;
    return *text ? 0 : 1;
}
int cuInit(unsigned int flags) { return flags ? 1 : failure("cuInit"); }
int cuDeviceGet(int* device, int ordinal) {
    *device = 70 + ordinal;  // A handle is no index.
    return failure("cuDeviceGet");
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
    *context = &primary_context;
    return device == 73 ? failure("cuDevicePrimaryCtxRetain") : 101;
}
int cuCtxPushCurrent_v2(void* context) {
    contexts.push_back(context);
    return failure("cuCtxPushCurrent_v2");
}
int cuCtxPopCurrent_v2(void** context) {
    *context = contexts.back();
    contexts.pop_back();
    return 0;
}
int cuModuleLoadData(void** result, const void* image) {
    if (!is_context_current()) return 201;
    *result = &module;
    return memcmp(image, "\0image", 6) ? 200 : failure("cuModuleLoadData");
}
int cuModuleGetFunction(void** function, void* of_module, const char* name) {
    if (of_module != &module) return 400;
    *function = const_cast<char*>(names.insert(name).first->c_str());
    return failure("cuModuleGetFunction");
}
int cuLaunchKernel(void* function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z, unsigned int block_x,
                   unsigned int block_y, unsigned int block_z, unsigned int shared_bytes, void* stream, void** params,
                   void** extra) {
    if (!is_context_current()) return 201;
    if (extra) return 1;
    last_stream = stream;
    const unsigned int grid[3] = {grid_x, grid_y, grid_z}, block[3] = {block_x, block_y, block_z};
    const int error = failure("cuLaunchKernel");
    return error ? error : cusim_launch(static_cast<char*>(function), grid, block, shared_bytes, params[0], 0);
}
}
