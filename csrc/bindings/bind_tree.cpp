#include "bindings/bindings.h"

namespace tts {
void bind_tree(pybind11::module_&) {}
}  // namespace tts
