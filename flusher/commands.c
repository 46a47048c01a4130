#include "flusher/commands.h"

#include <assert.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "flusher/books.h"
#include "flusher/catch_up.h"
#include "flusher/daemon.h"
#include "flusher/failure.h"
#include "flusher/jobs.h"
#include "flusher/metrics_file.h"
#include "flusher/migrate.h"
#include "flusher/overview.h"
#include "flusher/partitions.h"
#include "flusher/preview.h"
#include "flusher/progress.h"
#include "flusher/prune.h"
#include "flusher/quarantine.h"
#include "flusher/source_redis.h"
#include "flusher/whole.h"
#include "lib/clock.h"
#include "lib/log.h"

/* A command's own connections; the jobs of a run have others. */
struct session {
    const struct config *config;
    const struct command_options *options;
    struct postgres *postgres;
    struct source_redis *source;
    struct plan *plan; /* of who asked for it */
};

static int session_open(struct session *session, const struct config *config,
                        const struct command_options *options, struct error *error)
{
    int r;

    *session = (struct session){.config = config, .options = options};
    r = postgres_new(config, &session->postgres, error);
    if (r == 0)
        r = source_redis_new(config, &session->source, error);
    return r;
}

static void session_close(struct session *session)
{
    plan_free(session->plan);
    source_redis_free(session->source);
    postgres_free(session->postgres);
}

static int session_plan(struct session *session, struct error *error)
{
    return plan_make(session->postgres, session->config, &session->plan, error);
}

/* Whether the schema and the number of shards are what they have to be. With `record`, a namespace that
 * nobody knows yet is written down: in Redis only after Postgres had no objection, so that a wrong number of
 * shards does not become the one on record. */
static int session_check(struct session *session, bool record, struct error *error)
{
    int r = migrate_check(session->postgres, session->options->config_path, error);

    if (r == 0)
        r = records_check_shards(session->postgres, session->config, false, error);
    if (r == 0)
        r = source_redis_check_shards(session->source, record, error);
    if (r == 0 && record)
        r = records_check_shards(session->postgres, session->config, true, error);
    return r;
}

static int fail(int r, const char *event, const struct error *error)
{
    log_error(LOG_LEVEL_ERROR, event, error);
    return failure_exit_code(r);
}

/* --- run --- */

static sigset_t stop_signals(void)
{
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    return signals;
}

/* The signals are blocked while it stays and repeats, and so wait until somebody asks; no handler runs, and
 * any thread may ask. */
static bool stop_requested(void)
{
    sigset_t pending;

    sigpending(&pending);
    return sigismember(&pending, SIGTERM) || sigismember(&pending, SIGINT);
}

/* False when it is time to stop. */
static bool sleep_until(int64_t deadline_ms)
{
    sigset_t signals = stop_signals();
    int64_t left_ms = deadline_ms - clock_monotonic_ms();
    struct timespec timeout = {0};

    if (left_ms > 0)
        timeout = (struct timespec){left_ms / 1000, left_ms % 1000 * 1000000};
    while (sigtimedwait(&signals, NULL, &timeout) < 0)
        if (errno == EAGAIN)
            return true;
    return false;
}

/* What is wrong with a shard has a line each; what ended the pass, one in all. */
static void log_failures(const struct jobs_result *result, const struct config *config)
{
    bool ended = result->failure == FAILURE_UNAVAILABLE || result->failure == FAILURE_CONFIG;
    char quoted[LOG_TEXT_BYTES];

    for (int64_t i = 0; !ended && result->texts && i < config->shards; i++)
        if (result->texts[i])
            log_event(LOG_LEVEL_ERROR, "shard_failed", "error=%s",
                      log_quote(quoted, span_of(result->texts[i])));
    if (ended || (result->failure != 0 && result->shards_failed == 0))
        log_error(LOG_LEVEL_ERROR, "flush_failed", &result->error);
}

static int finish_run(struct session *session, const struct jobs_result *result, int64_t started_ms,
                      struct error *error)
{
    struct run_record run = {
        .started_ms = started_ms,
        .finished_ms = clock_unix_ms(),
        .shards = result->shards,
        .keys = result->keys,
        .total = result->total,
        .events = result->events,
        .parked = result->parked,
        .dropped = result->dropped,
        .quarantined = result->quarantined,
        .failure = result->failure ? result->error.text : NULL,
    };

    return records_finish_run(session->postgres, session->config, &run, result->fresh_ms, error);
}

static void take_metrics(struct run_metrics *metrics, const struct jobs_result *result)
{
    metrics->shards = result->shards;
    metrics->shards_failed = result->shards_failed;
    metrics->keys = result->keys;
    metrics->increments = result->total;
    metrics->events = result->events;
    metrics->parked = result->parked;
    metrics->dropped = result->dropped;
    metrics->quarantined = result->quarantined;
}

/* The run is what it was, whether or not this succeeds. */
static void write_metrics(struct session *session, struct run_metrics *metrics)
{
    struct overview_view view;
    struct error error;

    overview_view(session->source, session->postgres, session->config, session->options->config_path, &view);
    if (view.postgres == 0)
        metrics->overview = &view.overview;
    if (metrics_file_write(session->options->metrics_path, session->config, metrics, &error) < 0)
        log_error(LOG_LEVEL_ERROR, "metrics_file_not_written", &error);
}

/* A run that can't see to the partitions flushes all the same: those of the next days are there by now. */
static void keep_partitions(struct session *session)
{
    struct partitions_kept kept;
    struct error error;

    if (partitions_keep(session->postgres, &session->plan->partitions, &kept, &error) < 0)
        log_error(LOG_LEVEL_WARN, "partitions_not_kept", &error);
    if (kept.made > 0 || kept.dropped > 0 || kept.postponed > 0)
        log_event(LOG_LEVEL_INFO, "partitions", "made=%zu dropped=%zu postponed=%zu", kept.made, kept.dropped,
                  kept.postponed);
}

/* Where there was nothing to flush, and what nobody can ask for any more. */
static int tidy_up(struct session *session, const struct jobs_result *result, struct error *error)
{
    int64_t caught_up;
    int r =
        catch_up(session->postgres, session->source, session->config, result->fresh_ms, &caught_up, error);

    if (caught_up > 0)
        log_event(LOG_LEVEL_WARN, "caught_up",
                  "shards=%" PRId64
                  " hint=\"Redis went back in time or was emptied, with nothing pending there "
                  "now; its totals go on from what Postgres has\"",
                  caught_up);
    if (r == 0)
        r = prune_requests(session->postgres, session->source, session->config, error);
    if (r == 0)
        r = prune_books(session->postgres, session->config, error);
    if (r < 0)
        log_error(LOG_LEVEL_ERROR, "tidy_up_failed", error);
    return r;
}

static int flush_all(struct session *session, struct run_metrics *metrics, struct error *error)
{
    bool watched =
        session->options->style == REPORT_TEXT && !session->options->among_lanes && progress_is_seen();
    struct jobs_options jobs = {session->config,
                                session->plan,
                                session->postgres,
                                session->source,
                                session->options->every_ms ? stop_requested : NULL,
                                watched ? progress_draw : NULL};
    int64_t started_ms = clock_unix_ms(), from_ms = clock_monotonic_ms();
    struct jobs_result result;
    int r = 0;

    keep_partitions(session);
    jobs_run(&jobs, &result);
    if (watched)
        progress_end();
    if (result.parked > 0)
        log_event(LOG_LEVEL_WARN, "parked",
                  "keys=%" PRId64 " hint=\"their tables did not take them; see 'flusher parked list'\"",
                  result.parked);
    log_failures(&result, session->config);
    report_flush(session->options->style,
                 &(struct report_flush){result.keys, result.total, result.events, result.shards,
                                        result.shards_failed, result.parked, result.dropped,
                                        result.quarantined, clock_monotonic_ms() - from_ms,
                                        result.failure ? result.error.text : NULL});
    /* Tried also when the pass failed: that is what the row is for. But then one line about it is enough. */
    if (result.fresh_ms && result.texts) {
        r = finish_run(session, &result, started_ms, error);
        if (r < 0 && result.failure == 0)
            log_error(LOG_LEVEL_ERROR, "run_not_recorded", error);
    }
    /* One that was told to stop has not seen all shards. */
    if (result.failure == 0 && r == 0 && result.shards == session->config->shards)
        r = tidy_up(session, &result, error);
    r = failure_worse(result.failure, r);
    take_metrics(metrics, &result);
    jobs_result_done(&result, session->config);
    return failure_exit_code(r);
}

/* Redis first, then Postgres. */
static int read_pending(struct session *session, struct pending *ret_pending, struct error *error)
{
    size_t shards = (size_t)session->config->shards;
    struct shard_state *states = calloc(shards, sizeof(*states));
    struct shard_ledger *ledger = calloc(shards, sizeof(*ledger));
    int r = states && ledger ? 0 : error_set(error, -ENOMEM, "out of memory");

    *ret_pending = (struct pending){0};
    for (size_t i = 0; r == 0 && i < shards; i++)
        r = source_redis_state(session->source, (uint32_t)i, &states[i], error);
    if (r == 0)
        r = records_ledger(session->postgres, session->config, states, ledger, error);
    for (size_t i = 0; r == 0 && i < shards; i++)
        pending_add_shard(ret_pending, &states[i], &ledger[i]);
    free(states);
    free(ledger);
    return r;
}

static int rehearse(struct session *session, struct error *error)
{
    struct preview *previews = calloc(session->config->targets->len + 1, sizeof(*previews));
    struct pending pending;
    int r = previews ? read_pending(session, &pending, error) : error_set(error, -ENOMEM, "out of memory");

    if (r == 0)
        r = preview_read(session->config, previews, error);
    if (r == 0)
        report_dry_run(session->options->style, session->config, &pending, previews);
    free(previews);
    return r < 0 ? fail(r, "dry_run_failed", error) : EX_OK;
}

static int run_once(const struct config *config, const struct command_options *options)
{
    int64_t from_ms = clock_monotonic_ms();
    struct run_metrics metrics = {0};
    struct session session;
    struct error error;
    int code, r = session_open(&session, config, options, &error);
    bool opened = r == 0;

    if (r == 0)
        r = session_check(&session, !options->dry_run, &error);
    if (r == 0)
        r = session_plan(&session, &error);
    if (r < 0)
        code = fail(r, "flush_failed", &error);
    else
        code = options->dry_run ? rehearse(&session, &error) : flush_all(&session, &metrics, &error);
    metrics.finished_ms = clock_unix_ms();
    metrics.elapsed_ms = clock_monotonic_ms() - from_ms;
    metrics.exit_code = code;
    if (opened && options->metrics_path)
        write_metrics(&session, &metrics);
    session_close(&session);
    return code;
}

int command_run(const struct config *config, const struct command_options *options)
{
    sigset_t signals = stop_signals();
    bool succeeded = false;

    if (options->every_ms == 0)
        return run_once(config, options);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    for (;;) {
        int64_t next_ms = clock_monotonic_ms() + options->every_ms;
        int code = run_once(config, options);
        /* Whatever else goes wrong may be better in the next round; so may this, when it was right before: a
         * table is being rebuilt, a password changed. And other lanes go on in any case. */
        if (code == EX_CONFIG && !succeeded && !options->among_lanes)
            return EX_CONFIG;
        succeeded |= code == EX_OK;
        if (!sleep_until(next_ms))
            return EX_OK;
    }
}

/* --- the others --- */

int command_migrate(const struct config *config, const struct command_options *options)
{
    struct session session;
    struct error error;
    size_t done = 0;
    int r = session_open(&session, config, options, &error);

    if (r == 0)
        r = migrate(session.postgres, &done, &error);
    for (size_t i = migrations_len - done; r == 0 && i < migrations_len; i++)
        log_event(LOG_LEVEL_INFO, "migrated", "migration=%s", migrations[i].name);
    if (r == 0)
        report_migrate(options->style, migrations_len, done);
    session_close(&session);
    return r < 0 ? fail(r, "migrate_failed", &error) : EX_OK;
}

int command_status(const struct config *config, const struct command_options *options)
{
    struct session session;
    struct overview_view view;
    struct error error;
    int r = session_open(&session, config, options, &error);

    if (r < 0) {
        session_close(&session);
        return fail(r, "status_failed", &error);
    }
    overview_view(session.source, session.postgres, config, options->config_path, &view);
    session_close(&session);
    if (view.redis == 0 || view.postgres == 0)
        report_status(options->style, config, &view);
    if (view.redis < 0)
        fail(view.redis, "status_failed", &view.redis_error);
    if (view.postgres < 0)
        fail(view.postgres, "status_failed", &view.postgres_error);
    r = failure_worse(view.redis, view.postgres);
    if (r == 0 && overview_is_worrying(&view.overview))
        return EX_TEMPFAIL;
    return failure_exit_code(r);
}

int command_get(const struct config *config, const struct command_options *options)
{
    struct session session;
    struct stored before, stored;
    struct peek peek;
    struct error error;
    int r = session_open(&session, config, options, &error);

    if (r == 0)
        r = session_check(&session, false, &error);
    if (r == 0)
        r = session_plan(&session, &error);
    /* Only to learn whether Redis has gone back in time, and what it says can't be taken for pending. */
    if (r == 0)
        r = records_stored(session.postgres, config, session.plan, options->key, &before, &error);
    if (r == 0)
        r = source_redis_peek(session.source, span_of(options->key), &peek, &error);
    if (r == 0)
        r = records_stored(session.postgres, config, session.plan, options->key, &stored, &error);
    if (r == 0) {
        struct key_pending pending = pending_of_key(&peek, &stored, config->lanes[config->lane].merge);
        bool went_back = audit_went_back(before.head_id, stored.head_id, peek.prev_id, peek.sealed_id);
        report_key(options->style, options->key, &stored, &pending,
                   went_back ? "Redis has gone back in time or was emptied: what is pending is known after "
                               "the next flush"
                   : !peek.whole
                       ? "its shard has too many members to look for its time buckets: what is pending "
                         "is known after the next flush"
                       : NULL);
    }
    session_close(&session);
    return r < 0 ? fail(r, "get_failed", &error) : EX_OK;
}

/* --- audit --- */

/* The order of the reads is what makes it right while traffic runs; see flusher/audit.h. */
static int audit_shards(struct session *session, struct shard_audit *shards, struct error *error)
{
    const struct config *config = session->config;
    struct shard_holdings *holdings = calloc((size_t)config->shards, sizeof(*holdings));
    struct shard_books *books = calloc((size_t)config->shards, sizeof(*books));
    int r = holdings && books ? books_heads(session->postgres, config, books, error)
                              : error_set(error, -ENOMEM, "out of memory");

    for (int64_t i = 0; r == 0 && i < config->shards; i++)
        r = source_redis_holdings(session->source, (uint32_t)i, &holdings[i], error);
    if (r == 0)
        r = books_read(session->postgres, config, holdings, books, error);
    for (int64_t i = 0; r == 0 && i < config->shards; i++)
        shards[i] = audit_shard(&holdings[i], &books[i]);
    for (int64_t i = 0; holdings && i < config->shards; i++)
        free(holdings[i].durable);
    free(holdings);
    free(books);
    return r;
}

static int audit_counters(struct session *session, struct shard_audit *shards, struct shard_audit *total,
                          struct error *error)
{
    size_t len = (size_t)session->config->shards;
    int64_t *differences = calloc(len, sizeof(*differences)), difference = 0;
    int r = differences ? books_counters(session->postgres, session->config, &difference, differences, error)
                        : error_set(error, -ENOMEM, "out of memory");

    for (size_t i = 0; r == 0 && i < len; i++) {
        audit_note_counters(&shards[i], differences[i]);
        audit_add(total, &shards[i]);
    }
    if (r == 0)
        audit_note_counters(total, difference);
    free(differences);
    return r;
}

static int report_verdict(struct session *session, struct shard_audit *total,
                          const struct shard_audit *shards)
{
    struct daemon_status status;
    struct error error;
    bool answered = daemon_ask(session->config, &status, &error) == 0;

    if (answered && !status.ready)
        audit_note(total, AUDIT_LATE, "counterd cannot store at the moment; see its status page");
    if (answered && status.lost > 0)
        audit_note(total, AUDIT_LOST, "counterd says that more was forgotten than it could send again");
    report_audit(session->options->style,
                 &(struct report_audit){total, shards, (size_t)session->config->shards,
                                        answered ? &status : NULL, answered ? NULL : error.text});
    if (total->verdict == AUDIT_BALANCED)
        return EX_OK;
    return total->verdict == AUDIT_LATE ? EX_TEMPFAIL : EX_DATAERR;
}

int command_audit(const struct config *config, const struct command_options *options)
{
    struct shard_audit *shards = calloc((size_t)config->shards, sizeof(*shards)), total = {.where = ""};
    struct session session;
    struct error error;
    int code, r = session_open(&session, config, options, &error);

    if (r == 0 && !shards)
        r = error_set(&error, -ENOMEM, "out of memory");
    if (r == 0)
        r = session_check(&session, false, &error);
    if (r == 0)
        r = audit_shards(&session, shards, &error);
    if (r == 0)
        r = audit_counters(&session, shards, &total, &error);
    code = r < 0 ? fail(r, "audit_failed", &error) : report_verdict(&session, &total, shards);
    session_close(&session);
    free(shards);
    return code;
}

/* --- quarantine --- */

const char *command_quarantine_mistake(const struct command_options *options)
{
    const char *verb = options->words_len > 0 ? options->words[0] : "";
    bool lists = strcmp(verb, "list") == 0, applies = strcmp(verb, "apply") == 0;
    int64_t id;

    if (!lists && !applies && strcmp(verb, "drop") != 0)
        return "quarantine takes one of: list, apply ID..., drop ID...";
    if (options->force && !applies)
        return "--force goes with quarantine apply only";
    if (lists != (options->words_len == 1))
        return lists ? "quarantine list takes nothing more" : "quarantine apply and drop take one ID or more";
    for (int i = 1; i < options->words_len; i++)
        if (!whole_parse(span_of(options->words[i]), &id) || id < 1)
            return "an ID is a number, as 'flusher quarantine list' shows it";
    return NULL;
}

static int list_quarantine(struct session *session, struct error *error)
{
    struct quarantine_list list = {0};
    int r = quarantine_read(session->postgres, session->config, &list, error);

    if (r == 0)
        report_quarantine(session->options->style, &list);
    quarantine_list_done(&list);
    return r;
}

/* In the order given, up to the first that can't be done. */
static int decide_quarantine(struct session *session, bool apply, struct error *error)
{
    const struct command_options *options = session->options;
    struct decision *decisions = calloc((size_t)options->words_len, sizeof(*decisions));
    size_t done = 0;
    int r = decisions ? 0 : error_set(error, -ENOMEM, "out of memory");

    for (int i = 1; r == 0 && i < options->words_len; i++) {
        int64_t id = 0;
        bool valid = whole_parse(span_of(options->words[i]), &id);
        assert(valid);
        r = apply ? quarantine_apply(session->postgres, session->config, id, options->force, &decisions[done],
                                     error)
                  : quarantine_drop(session->postgres, session->config, id, &decisions[done], error);
        done += r == 0;
    }
    if (done > 0)
        report_decisions(options->style, apply ? "applied" : "dropped", decisions, done);
    free(decisions);
    return r;
}

int command_quarantine(const struct config *config, const struct command_options *options)
{
    struct session session;
    struct error error;
    int r = session_open(&session, config, options, &error);

    /* Redis has no part in it, and may be away. */
    if (r == 0)
        r = migrate_check(session.postgres, options->config_path, &error);
    if (r == 0)
        r = records_check_shards(session.postgres, config, false, &error);
    if (r == 0)
        r = strcmp(options->words[0], "list") == 0
                ? list_quarantine(&session, &error)
                : decide_quarantine(&session, strcmp(options->words[0], "apply") == 0, &error);
    session_close(&session);
    return r < 0 ? fail(r, "quarantine_failed", &error) : EX_OK;
}
