#include "element.h"

SGO_EXPORT int stylegan_ops_abi_version(void) { return STYLEGAN_OPS_ABI_VERSION; }
