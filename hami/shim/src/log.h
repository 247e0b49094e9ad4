/* log.h: a few words on stderr, and by default none.
 *
 * HAMI_SHIM_LOG = error | warn | info | debug. Unset: only the one line that says why memory is
 * refused. Never called on a hot path; keeps errno.
 */
#ifndef HAMI_LOG_H
#define HAMI_LOG_H

enum hami_log_level { HAMI_LOG_ERROR = 1, HAMI_LOG_WARN, HAMI_LOG_INFO, HAMI_LOG_DEBUG };

/* Print one line if the level is wanted. */
__attribute__((format(printf, 2, 3))) void hami_log(enum hami_log_level level, const char *format, ...);

#endif
