/* metrics - the figures in the text formats that Prometheus reads
 *
 * Names and units by its conventions: counters end in _total, everything is in seconds and bytes.
 */
#ifndef COUNTERD_METRICS_H
#define COUNTERD_METRICS_H

#include "counterd/figures.h"
#include "counterd/health.h"

enum metrics_format {
    METRICS_PROMETHEUS,  /* text/plain; version=0.0.4 */
    METRICS_OPENMETRICS, /* application/openmetrics-text; version=1.0.0 */
};

/* What a scraper that sends this header is answered in; NULL: it sent none. */
enum metrics_format metrics_choose(const char *accept);

const char *metrics_content_type(enum metrics_format format);

/* Gives the text, to be freed with free(); NULL when out of memory. */
char *metrics_text(const struct figures *figures, const struct health *health, enum metrics_format format);

#endif
