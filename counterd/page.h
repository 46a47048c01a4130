/* page - the status page, made by the build of page.html (page.py)
 *
 * One file that needs nothing else; it shows what /v1/status and /v1/top say.
 */
#ifndef COUNTERD_PAGE_H
#define COUNTERD_PAGE_H

extern const char page_html[];

/* The Content-Security-Policy under which nothing but the page's own script and style runs. */
extern const char page_policy[];

#endif
