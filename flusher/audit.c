#include "flusher/audit.h"

#include "flusher/whole.h"

const char *audit_verdict_name(enum audit_verdict verdict)
{
    switch (verdict) {
    case AUDIT_BALANCED:
        return "balanced";
    case AUDIT_LATE:
        return "late";
    case AUDIT_DOUBLED:
        return "doubled";
    case AUDIT_LOST:
        return "lost";
    }
    return "";
}

bool audit_went_back(const char *head_before, const char *head_now, const char *prev_id,
                     const char *sealed_id)
{
    return strcmp(head_before, head_now) == 0 && strcmp(head_now, prev_id) != 0 &&
           strcmp(head_now, sealed_id) != 0;
}

void audit_note(struct shard_audit *audit, enum audit_verdict verdict, const char *where)
{
    if (verdict <= audit->verdict)
        return;
    audit->verdict = verdict;
    audit->where = where;
}

/* `difference` is what should be there less what is. */
static void note_difference(struct shard_audit *shard, int64_t difference, const char *where)
{
    enum audit_verdict verdict = difference > 0 ? AUDIT_LOST : AUDIT_DOUBLED;

    if (difference == 0 || verdict <= shard->verdict)
        return;
    shard->difference = difference;
    audit_note(shard, verdict, where);
}

/* The set that is sealed holds what was accepted between the last release and the seal; open, what came
 * since. With nothing sealed, the first of these has to come to nothing: else a generation held more or less
 * than Redis's total said, and the ledger has its content. */
static void compare_redis(struct shard_audit *shard, const struct shard_holdings *holdings,
                          const struct shard_books *books)
{
    int64_t since_release = whole_subtract(holdings->accepted_at_seal, books->prev_total);
    int64_t since_seal = whole_subtract(holdings->accepted, holdings->accepted_at_seal);
    bool sealed = holdings->sealed_id[0] != '\0' && !holdings->set_aside;

    shard->open = holdings->open_known ? holdings->open : since_seal;
    if (sealed)
        shard->sealed = holdings->sealed_known ? holdings->sealed : since_release;
    note_difference(shard, whole_subtract(since_seal, shard->open),
                    "the open set in Redis does not hold what its running total says");
    note_difference(shard, whole_subtract(since_release, shard->sealed),
                    sealed ? "the sealed set in Redis does not hold what its running total says"
                           : "the ledger does not hold what Redis's running total says was released");
}

static void compare_books(struct shard_audit *shard, const struct shard_books *books)
{
    int64_t applied = whole_add(books->cumulative_total, books->recovered_total);

    note_difference(shard, whole_subtract(applied, books->ledger_total),
                    "the rows of counterd.ledger do not add up to the totals in counterd.shards");
    note_difference(shard, whole_subtract(books->cumulative_total, books->head_total),
                    "the newest row of counterd.ledger has another cumulative total than counterd.shards");
    note_difference(shard, whole_subtract(books->parked_total, books->parked_rows_total),
                    "the rows of counterd.parked do not add up to the totals in counterd.shards");
}

struct shard_audit audit_shard(const struct shard_holdings *holdings, const struct shard_books *books)
{
    struct shard_audit shard = {.where = "",
                                .parked = books->parked_total,
                                .dropped = books->dropped_total,
                                .quarantined = books->quarantined};

    if (books->prev_known)
        compare_redis(&shard, holdings, books);
    else
        audit_note(&shard, AUDIT_LOST, "counterd.ledger lacks the generation that Redis released last");
    compare_books(&shard, books);
    if (books->vector_behind)
        audit_note(&shard, AUDIT_LOST, "counterd.writers lacks batches that Redis knows to be in Postgres");
    shard.accepted = whole_add(whole_add(holdings->accepted, books->recovered_total), books->quarantined);
    shard.applied = whole_subtract(whole_add(books->prev_total, books->recovered_total),
                                   whole_add(books->parked_total, books->dropped_total));
    if (audit_went_back(books->head_before, books->head_id, holdings->prev_id, holdings->sealed_id))
        audit_note(&shard, AUDIT_LATE,
                   "Redis has gone back in time or was emptied; the next flush deals with it");
    if (holdings->set_aside)
        audit_note(&shard, AUDIT_LATE,
                   "a generation is on its way into quarantine; the next flush goes on with it");
    if (books->quarantined_rows > 0)
        audit_note(&shard, AUDIT_LATE,
                   "the quarantine holds what Postgres lacks; see 'flusher quarantine list'");
    return shard;
}

void audit_note_counters(struct shard_audit *shard, int64_t difference)
{
    note_difference(shard, difference, "counterd.counters does not hold what the ledger says was applied");
}

void audit_add(struct shard_audit *total, const struct shard_audit *shard)
{
    total->accepted = whole_add(total->accepted, shard->accepted);
    total->applied = whole_add(total->applied, shard->applied);
    total->open = whole_add(total->open, shard->open);
    total->sealed = whole_add(total->sealed, shard->sealed);
    total->parked = whole_add(total->parked, shard->parked);
    total->dropped = whole_add(total->dropped, shard->dropped);
    total->quarantined = whole_add(total->quarantined, shard->quarantined);
    total->difference = whole_add(total->difference, shard->difference);
    if (shard->verdict > total->verdict)
        total->verdict = shard->verdict;
}
