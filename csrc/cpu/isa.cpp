#include "cpu/isa.h"
