#pragma once

#include "core/convert.h"
