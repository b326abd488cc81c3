/* report.css as a string; meson quotes the file line by line. */
#include "report/inside.h"

const char wz_report_style[] =
#include "report.css.inc"
    ;
