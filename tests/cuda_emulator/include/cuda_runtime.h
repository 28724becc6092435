// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "emulator/device.h"
#include "emulator/runtime.h"
