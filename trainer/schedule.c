/* The learning rate over a stage. */
#include "trainer/trainer.h"

#include <math.h>

double wz_learning_rate(double peak, double warmup, double floor, int step, int steps)
{
    if (step < warmup) return peak * (step + 1 < warmup ? (step + 1) / warmup : 1);
    double left = steps - warmup, done = left > 1 ? (step - warmup) / (left - 1) : 0;

    if (done > 1) done = 1;
    return peak * (floor + (1 - floor) * 0.5 * (1 + cos(M_PI * done)));
}
