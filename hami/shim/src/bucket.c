/* bucket.c: tickets of device time. One atomic addition takes a piece; its sum is the ticket.
 *
 * A ticket is good once the grant, and the burst beside it, has reached it: whoever adds first goes
 * first. Nothing is locked and nothing is kept by those who wait: they look at the line and at the
 * mode again and again, so that a change reaches them, and one that is killed leaves a piece unused.
 */
#define _GNU_SOURCE
#include "bucket.h"

#include <time.h>

#define SECOND_NS UINT64_C(1000000000)
#define NAP_MAX_NS UINT64_C(10000000)
#define PIECE_MIN_NS UINT64_C(20000)
#define PIECE_MAX_NS UINT64_C(1000000)
#define PIECE_SPAN_NS UINT64_C(5000000) /* a piece is what is granted in that time */
#define BACKLOG_SECONDS 60              /* nobody waits behind more of the grant than that, ... */
#define BACKLOG_PIECES 16               /* ... or than that many times what it takes itself */
#define LINE_TRIES 64

struct line {
    uint64_t granted_ns;
    uint64_t since_ns;
    uint64_t rate;
};

static uint64_t add(uint64_t left, uint64_t right)
{
    return left + right < left ? UINT64_MAX : left + right;
}

/* left * right / divisor, UINT64_MAX where that is too large. */
static uint64_t scale(uint64_t left, uint64_t right, uint64_t divisor)
{
    const unsigned __int128 product = (unsigned __int128)left * right / divisor;
    return product > UINT64_MAX ? UINT64_MAX : (uint64_t)product;
}

uint64_t hami_bucket_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

void hami_bucket_nap(uint64_t ns)
{
    const uint64_t nap = ns < NAP_MAX_NS ? ns : NAP_MAX_NS;
    clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){.tv_nsec = (long)nap}, NULL);
}

/* The line that holds. The writer changes the other one and then the sequence: two equal sequences
 * around it mean that it was whole. A writer that does not stop cannot keep us. */
static struct line read_line(const struct hami_device_control *control)
{
    struct line line;
    for (int tries = 0;; tries++) {
        const uint32_t sequence = atomic_load_explicit(&control->grant_sequence, memory_order_acquire);
        const struct hami_grant *grant = &control->grants[sequence & 1];
        line.granted_ns = atomic_load_explicit(&grant->granted_ns, memory_order_acquire);
        line.since_ns = atomic_load_explicit(&grant->since_ns, memory_order_acquire);
        line.rate = atomic_load_explicit(&grant->rate_ns_per_second, memory_order_acquire);
        if (tries == LINE_TRIES ||
            atomic_load_explicit(&control->grant_sequence, memory_order_relaxed) == sequence)
            break;
    }
    if (line.rate < HAMI_RATE_MIN_NS)
        line.rate = HAMI_RATE_MIN_NS;
    return line;
}

static uint64_t granted_at(const struct line *line, uint64_t now_ns)
{
    const bool begun = line->since_ns != 0 && now_ns > line->since_ns;
    const uint64_t passed = begun ? now_ns - line->since_ns : 0;
    return add(line->granted_ns, scale(passed, line->rate, SECOND_NS));
}

uint64_t hami_bucket_granted(const struct hami_region *region, unsigned device, uint64_t now_ns)
{
    const struct line line = read_line(&region->control->devices[device]);
    return granted_at(&line, now_ns);
}

static bool agent_is_dead(const struct hami_region *region)
{
    const uint64_t beat = atomic_load_explicit(&region->control->heartbeat_ns, memory_order_relaxed);
    const uint64_t now = hami_bucket_now_ns();
    return now > beat && now - beat > HAMI_HEARTBEAT_MAX_NS;
}

enum hami_core_mode hami_bucket_mode(const struct hami_region *region, unsigned device)
{
    const struct hami_device_control *control = &region->control->devices[device];
    const uint32_t mode = atomic_load_explicit(&control->core_mode, memory_order_relaxed);
    const uint32_t line = atomic_load_explicit(&control->grant_sequence, memory_order_acquire) & 1;
    if (mode == HAMI_CORE_OFF || mode == HAMI_CORE_SUSPEND)
        return (enum hami_core_mode)mode;
    if (mode == HAMI_CORE_BLOCK && !agent_is_dead(region))
        return HAMI_CORE_BLOCK;
    if (atomic_load_explicit(&control->grants[line].since_ns, memory_order_relaxed) == 0)
        return HAMI_CORE_OFF;
    return HAMI_CORE_LIMIT;
}

/* As much as is granted in 5 ms, within bounds: few additions at a high rate, and at a low one no
 * thread sits on what others wait for. */
static uint64_t piece_of(uint64_t rate, uint64_t need_ns, uint64_t most_ns)
{
    uint64_t piece = scale(rate, PIECE_SPAN_NS, SECOND_NS);
    piece = piece < PIECE_MIN_NS ? PIECE_MIN_NS : piece > PIECE_MAX_NS ? PIECE_MAX_NS : piece;
    piece = piece < most_ns ? piece : most_ns;
    return need_ns > piece ? need_ns : piece;
}

/* A sum that lags is what was granted and not taken: it is lost but for the burst. */
static void raise_to(_Atomic uint64_t *debited, uint64_t floor)
{
    uint64_t seen = atomic_load(debited);
    while (seen < floor && !atomic_compare_exchange_weak(debited, &seen, floor))
        ;
}

/* Usage is the container's to write: a sum that is absurdly far ahead is pulled back. */
static void lower_to(_Atomic uint64_t *debited, uint64_t ceiling)
{
    uint64_t seen = atomic_load(debited);
    while (seen > ceiling && !atomic_compare_exchange_weak(debited, &seen, ceiling))
        ;
}

/* One who waits for its turn. */
struct turn {
    struct hami_region *region;
    unsigned device;
    uint64_t need_ns, most_ns;
    uint64_t piece;
    uint64_t ticket; /* 0: none was drawn yet */
};

static _Atomic uint64_t *counter_of(const struct turn *turn)
{
    return &turn->region->usage->buckets[turn->device].debited_ns;
}

static void draw(struct turn *turn, uint64_t granted, uint64_t burst, uint64_t ceiling)
{
    _Atomic uint64_t *debited = counter_of(turn);
    raise_to(debited, granted > burst ? granted - burst : 0);
    lower_to(debited, ceiling);
    turn->ticket = atomic_fetch_add(debited, turn->piece) + turn->piece;
}

/* Nanoseconds until the ticket is good as things are now; 0: it is. Draws it if need be. */
static uint64_t missing(struct turn *turn)
{
    const struct hami_device_control *control = &turn->region->control->devices[turn->device];
    const struct line line = read_line(control);
    const uint64_t burst = atomic_load_explicit(&control->burst_ns, memory_order_relaxed);
    const uint64_t granted = granted_at(&line, hami_bucket_now_ns());
    const uint64_t reach = add(granted, burst);
    if (turn->ticket == 0)
        turn->piece = piece_of(line.rate, turn->need_ns, turn->most_ns);
    const uint64_t of_grant = scale(line.rate, BACKLOG_SECONDS, 1);
    const uint64_t of_pieces = turn->piece * BACKLOG_PIECES;
    const uint64_t ceiling = add(reach, of_grant > of_pieces ? of_grant : of_pieces);
    if (turn->ticket == 0 || turn->ticket - turn->piece > ceiling)
        draw(turn, granted, burst, ceiling);
    if (turn->ticket <= reach)
        return 0;
    return scale(turn->ticket - reach, SECOND_NS, line.rate) + 1;
}

/* Add a signed amount, but never below zero or above the top. */
static void adjust(_Atomic uint64_t *word, int64_t more)
{
    uint64_t seen = atomic_load(word);
    uint64_t wanted;
    const uint64_t size = more < 0 ? -(uint64_t)more : (uint64_t)more;
    do
        wanted = more >= 0 ? add(seen, size) : seen > size ? seen - size : 0;
    while (!atomic_compare_exchange_weak(word, &seen, wanted));
}

static void give_back(struct turn *turn)
{
    if (turn->ticket != 0)
        adjust(counter_of(turn), -(int64_t)turn->piece);
    turn->piece = 0;
}

/* Until the ticket is good. The limit may be lifted, or the container be held, at any time. */
static void wait_for_turn(struct turn *turn)
{
    for (;;) {
        const enum hami_core_mode mode = hami_bucket_mode(turn->region, turn->device);
        uint64_t left = NAP_MAX_NS;
        if (mode == HAMI_CORE_OFF) {
            give_back(turn);
            return;
        }
        if (mode == HAMI_CORE_LIMIT)
            left = missing(turn);
        if (left == 0)
            return;
        hami_bucket_nap(left);
    }
}

static struct hami_usage_row *row_of(struct hami_region *region, unsigned device)
{
    return &region->usage->slots[region->slot].rows[device];
}

uint64_t hami_bucket_take(struct hami_region *region, unsigned device, uint64_t need_ns, uint64_t most_ns)
{
    struct turn turn = {.region = region, .device = device, .most_ns = most_ns};
    turn.need_ns = need_ns < HAMI_COST_MAX_NS ? need_ns : HAMI_COST_MAX_NS;
    struct hami_usage_row *row = row_of(region, device);
    if (hami_bucket_mode(region, device) != HAMI_CORE_LIMIT || missing(&turn) != 0) {
        const uint64_t start = hami_bucket_now_ns();
        wait_for_turn(&turn);
        atomic_fetch_add_explicit(&row->waited_ns, hami_bucket_now_ns() - start, memory_order_relaxed);
    }
    atomic_fetch_add_explicit(&row->spent_ns, turn.piece, memory_order_relaxed);
    return turn.piece;
}

void hami_bucket_settle(struct hami_region *region, unsigned device, int64_t more_ns)
{
    adjust(&region->usage->buckets[device].debited_ns, more_ns);
    adjust(&row_of(region, device)->spent_ns, more_ns);
}
