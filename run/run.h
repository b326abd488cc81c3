/* run: a job over ranks. What a rank holds (job.h), one stage of training (stage.h), what became of a step
 * (account.h), what a run needs (plan.h), and the files it writes (folder.h). */
#ifndef WZ_RUN_H
#define WZ_RUN_H

#include "run/account.h"
#include "run/folder.h"
#include "run/fsck.h"
#include "run/job.h"
#include "run/plan.h"
#include "run/stage.h"

#endif
