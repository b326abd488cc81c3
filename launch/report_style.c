/* report.css as a string; meson quotes the file line by line. */
#include "launch/report.h"

const char wz_report_style[] =
#include "report.css.inc"
    ;
