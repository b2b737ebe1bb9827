#include "tree/page_pool.h"
