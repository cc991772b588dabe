/* libcuda.so.1 without a device: what Triton asks of CUDA's driver, answered as an H200 would. Nothing is ever run. A launch is
   counted, and handed to `on_launch` if that is set. Built and loaded by driver_without_device.py. */

#include <stddef.h>
#include <stdint.h>

typedef int CUresult;
typedef int CUdevice;
typedef void *CUcontext, *CUmodule, *CUfunction, *CUstream;
typedef unsigned long long CUdeviceptr;
typedef void (*launch_callback)(const void *config, CUfunction function, void **parameters);

long num_launches;
launch_callback on_launch;

static int context;
static uintptr_t num_modules;

CUresult cuLaunchKernelEx(const void *config, CUfunction function, void **parameters, void **extra) {
  (void)extra;
  num_launches++;
  if (on_launch) on_launch(config, function, parameters);
  return 0;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
  (void)device;
  switch (attribute) { /* CUdevice_attribute */
    case 1: *value = 1024; break;    /* threads a block */
    case 10: *value = 32; break;     /* threads a warp */
    case 12: *value = 65536; break;  /* registers a block */
    case 16: *value = 132; break;    /* multiprocessors */
    case 75: *value = 9; break;      /* compute capability */
    case 81: *value = 233472; break; /* bytes of shared memory a multiprocessor */
    case 97: *value = 232448; break; /* the same a block may have */
    default: *value = 0;
  }
  return 0;
}

/* A module is its number, and so is its function. */
CUresult cuModuleLoadData(CUmodule *module, const void *image) { (void)image; *module = (void *)++num_modules; return 0; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  (void)name;
  *function = module;
  return 0;
}
CUresult cuModuleUnload(CUmodule module) { (void)module; return 0; }

CUresult cuFuncGetAttribute(int *value, int attribute, CUfunction function) {
  (void)function;
  *value = attribute == 0 ? 1024 : 0; /* threads a block; no spills */
  return 0;
}
CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value) {
  (void)function, (void)attribute, (void)value;
  return 0;
}
CUresult cuFuncSetCacheConfig(CUfunction function, int config) { (void)function, (void)config; return 0; }

/* Every address is the device's own. */
CUresult cuPointerGetAttribute(void *value, int attribute, CUdeviceptr pointer) {
  (void)attribute;
  *(CUdeviceptr *)value = pointer;
  return 0;
}

CUresult cuInit(unsigned flags) { (void)flags; return 0; }
CUresult cuCtxGetCurrent(CUcontext *current) { *current = &context; return 0; }
CUresult cuCtxSetCurrent(CUcontext current) { (void)current; return 0; }
CUresult cuCtxGetDevice(CUdevice *device) { *device = 0; return 0; }
CUresult cuCtxGetLimit(size_t *value, int limit) { (void)limit; *value = 0; return 0; }
CUresult cuCtxSetLimit(int limit, size_t value) { (void)limit, (void)value; return 0; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = ordinal; return 0; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *retained, CUdevice device) { (void)device; *retained = &context; return 0; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return 0; }
CUresult cuGetErrorString(CUresult error, const char **text) { (void)error; *text = "no error"; return 0; }
CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const void *config) {
  (void)function, (void)config;
  *clusters = 1;
  return 0;
}
CUresult cuStreamIsCapturing(CUstream stream, int *status) { (void)stream; *status = 0; return 0; }
CUresult cuTensorMapEncodeTiled(void) { return 0; }
CUresult cuTensorMapEncodeIm2col(void) { return 0; }
