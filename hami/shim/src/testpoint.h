/* testpoint.h: named places at which a test kills or stops this process, in test builds only. */
#ifndef HAMI_TESTPOINT_H
#define HAMI_TESTPOINT_H

/* HAMI_KILL_AT and HAMI_STOP_AT name the point; the process is killed, or stopped once, as it gets
 * there. Without -DHAMI_TEST_POINTS there is nothing of this in the library. */
#ifdef HAMI_TEST_POINTS
void hami_test_point(const char *name);
#else
#define hami_test_point(name) ((void)0)
#endif

#endif
