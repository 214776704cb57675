//! Every bound on one page. A limit that two places must agree on is here and nowhere else.

use std::time::Duration;

/// Default length of a chunk in bytes; files are cut at multiples of it.
pub const CHUNK_BYTES: u32 = 1 << 20;
/// The largest chunk any cluster setting allows, and so the largest any node accepts.
pub const CHUNK_BYTES_MAX: u32 = 8 << 20;
/// The smallest chunk size a cluster may be set to.
pub const CHUNK_BYTES_MIN: u32 = 256 << 10;

/// Longest encoded head of a message.
pub const HEAD_BYTES_MAX: usize = 4 << 20;
/// Longest body of a message.
pub const BODY_BYTES_MAX: usize = 16 << 20;
/// Most chunks one put may carry.
pub const PUT_CHUNKS_MAX: usize = 1024;
/// A batch of small chunks is sent when it holds this many bytes.
pub const PUT_BATCH_BYTES: usize = 4 << 20;
/// Most ids one question or commit may name.
pub const IDS_MAX: usize = 65_536;

/// A content list longer than this becomes list chunks.
pub const CONTENT_INLINE_CHUNKS_MAX: usize = 1000;
/// Entries of one list chunk.
pub const LIST_CHUNK_ENTRIES: usize = 16_384;

/// A manifest page is not cut before it has this many bytes. About 16 KiB are usual.
pub const PAGE_BYTES_MIN: usize = 4 << 10;
/// A page is always cut when the next entry would pass this.
pub const PAGE_BYTES_CUT: usize = 48 << 10;
/// Longest page that is read: one whose only entry is long, and pages of deploys from when they were
/// cut later.
pub const PAGE_BYTES_MAX: usize = 192 << 10;
/// Deepest page tree a reader follows (fan-out is in the hundreds, so 4 levels hold 10^9 files).
pub const PAGE_DEPTH_MAX: usize = 8;
/// Longest page in a proof: the items of a page and what stands before them.
pub const PROOF_PAGE_BYTES_MAX: usize = PAGE_BYTES_MAX + 64;
/// Most chunks of a proof: the pages of some forty paths, and lists of a long file.
pub const PROOF_CHUNKS_MAX: usize = 512;
/// Most bytes of a proof.
pub const PROOF_BYTES_MAX: usize = 16 << 20;
/// Longer rules are not part of proofs, which must have room for pages.
pub const PROOF_RULES_BYTES_MAX: u64 = 1 << 20;

/// Longest path of a file within a site, in bytes.
pub const SITE_PATH_BYTES_MAX: usize = 4096;
/// Longest name of a directory entry, in bytes (POSIX NAME_MAX on Linux).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest target of a symbolic link, in bytes.
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Longest value of an extended attribute, in bytes (XATTR_SIZE_MAX on Linux).
pub const XATTR_BYTES_MAX: usize = 64 << 10;
/// Most bytes of names and values of all extended attributes of an inode together. The names alone
/// fit a listxattr(2), which takes 64 KiB.
pub const XATTRS_BYTES_MAX: usize = 128 << 10;
/// Most extended attributes of an inode.
pub const XATTRS_MAX: usize = 250;
/// Longest site or alias name: it must fit a DNS label.
pub const SITE_NAME_BYTES_MAX: usize = 63;
/// Longest deploy message in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1024;
/// Most directory entries in one reply.
pub const READDIR_ENTRIES_MAX: usize = 4096;
/// Most patterns in one invalidation.
pub const INVALIDATE_PATTERNS_MAX: usize = 1000;
/// Most chunks of one erasure.
pub const ERASE_CHUNKS_MAX: usize = 16_384;
/// Most pages, lists, files and deploys that lead to the chunks of one erasure.
pub const ERASE_PARENTS_MAX: usize = 32_768;
/// Most bytes of one erasure as it is sent.
pub const ERASE_BYTES_MAX: usize = 3 << 20;
/// Objects without references that are looked through for one answer.
pub const UNREFERENCED_PART: usize = 8192;
/// Most chunks that were ever erased: every chunkserver and edge has all of them in memory.
pub const ERASED_MAX: u64 = 262_144;
/// Chunks of the list of erased ones in one answer, beyond which no further log index is begun.
pub const ERASED_PART: usize = 16_384;
/// Longest cache tag in bytes.
pub const TAG_BYTES_MAX: usize = 1024;
/// Most cache tags of a file; more are ignored.
pub const TAGS_MAX: usize = 1000;
/// Most earlier deploys of an alias whose files stay reachable.
pub const EARLIER_DEPLOYS_MAX: usize = 32;
/// Digits of a deploy's id that its host name has at least.
pub const DEPLOY_DIGITS_MIN: usize = 8;
/// Most deploys of a site that have host names of their own: the latest.
pub const NAMED_DEPLOYS_MAX: usize = 1000;
/// Most deploys with host names in one snapshot for an edge, of all sites together.
pub const SNAPSHOT_DEPLOYS_MAX: usize = 32_768;
/// The latest that an alias may expire.
pub const ALIAS_LIFETIME_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Longest path of a directory that a site follows, in bytes.
pub const LIVE_PATH_BYTES_MAX: usize = 4096;
/// Most files of a live site, and most directories.
pub const LIVE_FILES_MAX: usize = 500_000;
/// A live site keeps this many of the deploys that its directory was sealed as.
pub const LIVE_DEPLOYS_KEPT: usize = 500;
/// How long sealing a live site may take.
pub const SEAL_DEADLINE: Duration = Duration::from_secs(90);
/// Most rules in `_redirects`, and most blocks in `_headers`.
pub const RULES_MAX: usize = 150_000;
/// Most segments of the paths of all rules, of each file. With the number of rules this bounds what
/// rules take in memory.
pub const RULES_SEGMENTS_MAX: usize = 500_000;
/// Longest `_redirects` or `_headers` in bytes.
pub const RULES_FILE_BYTES_MAX: usize = 32 << 20;
/// Longest line of either in bytes.
pub const RULES_LINE_BYTES_MAX: usize = 8 << 10;
/// Longest compiled form of both in bytes; it is stored in chunks like any content.
pub const RULES_BYTES_MAX: usize = 16 << 20;
/// Most segments of the path of a rule.
pub const RULE_SEGMENTS_MAX: usize = 64;
/// Most `*` in one path of `_headers`.
pub const RULE_SPLATS_MAX: usize = 8;
/// Each segment of a path with several of them costs as much as so many rules: it is looked for
/// everywhere in the path that is asked for, not only compared.
pub const RULE_SPLATS_WORK: usize = 16;
/// Most places for captured text in one target or value of a rule.
pub const RULE_PLACES_MAX: usize = 16;
/// Longest target or value a rule makes for a request, in bytes; a longer one is not sent.
pub const LOCATION_BYTES_MAX: usize = 16 << 10;
/// Of the redirects that fit one URL, so many are looked at.
pub const RULE_MATCHES_MAX: usize = 64;
/// Most that one request may cost in looking for rules, in nodes, wildcards and rules compared; rules
/// with which it could cost more are refused.
pub const RULE_WORK_MAX: usize = 4096;
/// The same for rules about headers, each of which counts as often as it has headers.
pub const HEADER_RULE_WORK_MAX: usize = 2048;
/// Most steps that finding the files which an invalidation means may take.
pub const SEARCH_STEPS_MAX: u64 = 16 << 20;
/// The same for one path where the files of the site are looked up one by one, before all of them
/// are read.
pub const LOOKUP_STEPS_MAX: u64 = 16 << 10;
/// The same for all paths of an invalidation, with everything that its site answers with.
pub const LOOKUPS_STEPS_MAX: u64 = 16 << 20;
/// Most files that such a search goes through: more would take more steps than there are.
pub const SEARCH_FILES_MAX: usize = 2 << 20;
/// Hosts that rules about one path may name for each to be asked about by itself.
pub const SEARCH_HOSTS_MAX: usize = 8;
/// Most parameters of the query that one rule may want.
pub const RULE_WANTED_MAX: usize = 16;
/// Most languages, and most cookies, that one rule may name.
pub const RULE_CONDITIONS_MAX: usize = 64;
/// Most headers that one rule may change.
pub const RULE_CHANGES_MAX: usize = 100;
/// Most headers that the rules may change in one answer, and most bytes of them; what is more is
/// left out.
pub const RULED_HEADERS_MAX: usize = 128;
/// See [`RULED_HEADERS_MAX`].
pub const RULED_HEADERS_BYTES_MAX: usize = 64 << 10;
/// Parameters of a query that rules look at: the first.
pub const RULE_PARAMETERS_MAX: usize = 64;
/// Longest text of one error in `_redirects` and `_headers`, in bytes.
pub const RULE_FAULT_BYTES_MAX: usize = 400;
/// Errors in `_redirects` and `_headers` that are told in full.
pub const RULE_FAULTS_TOLD: usize = 20;
/// Most entries of the publish log in one reply.
pub const WATCH_ENTRIES_MAX: usize = 512;

/// Most deltas in one answer, beyond which no further log index is begun.
pub const DELTAS_MAX: usize = 16_384;
/// Most deltas the master keeps; who is further behind compares trees.
pub const DELTAS_KEPT: u64 = 2_000_000;
/// Most questions in one step of a walk.
pub const WALK_ASKS_MAX: usize = 512;
/// Most ids in the answers to one step of a walk; asks beyond are answered `Unavailable`.
pub const WALK_IDS_MAX: usize = 65_536;
/// Most groups whose roots one heartbeat carries.
pub const REPORT_GROUPS_MAX: usize = 1024;

/// Copies a chunk has when there are enough chunkservers.
pub const REPLICAS: usize = 3;
/// Copies that must be on disk before a write is acknowledged, when there are that many servers.
pub const REPLICAS_DURABLE: usize = 2;

/// What puts leave free on a chunkserver's disk, unless its configuration says otherwise: this, or the
/// share below if that is less.
pub const DISK_RESERVE_BYTES: u64 = 256 << 20;
/// One part of so many of a disk.
pub const DISK_RESERVE_PART: u64 = 50;

/// How long a receipt may be used in a commit.
pub const RECEIPT_LIFETIME: Duration = Duration::from_secs(6 * 3600);
/// A chunk that was put and never became live is kept for this long: longer than any receipt for
/// it may be used, with room for clocks that differ.
pub const PENDING_LIFETIME: Duration = Duration::from_secs(8 * 3600);
/// How long a chunk without references stays in the object table before it is collected.
pub const UNREFERENCED_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How long a collected chunk's bytes are kept in quarantine.
pub const QUARANTINE_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// A pass that would drop more than this share of a group, in percent, stops ...
pub const DROP_PERCENT_MAX: u64 = 1;
/// ... if it is also more than this many chunks.
pub const DROP_CHUNKS_MAX: u64 = 64;
/// A session without a request for this long is forgotten.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How often nodes send heartbeats to the master while there is something to tell.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// How often they do while nothing changes.
pub const HEARTBEAT_QUIET: Duration = Duration::from_secs(2);
/// A node that was silent for this long is taken to be down.
pub const HEARTBEAT_LOST: Duration = Duration::from_secs(6);
/// Longest wait of a watch request before it is answered empty.
pub const WATCH_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long an edge may serve after it asked for the lease that it holds.
pub const LEASE_TERM: Duration = Duration::from_secs(10);
/// How often an edge asks for the next one.
pub const LEASE_RENEW_EVERY: Duration = Duration::from_millis(3333);
/// Most acknowledgements and renewals in one message of a relay.
pub const RELAY_ITEMS_MAX: usize = 8192;
/// Most that wait at a relay for the master's answer; what is more is refused.
pub const RELAY_WAITING_MAX: usize = 65_536;
/// Entries of the publish log that a relay keeps, and their bytes.
pub const RELAY_ENTRIES_MAX: usize = 4096;
/// See [`RELAY_ENTRIES_MAX`].
pub const RELAY_ENTRIES_BYTES_MAX: usize = 16 << 20;
/// An answer of a relay ends with the entry before the one that would make it longer than this.
pub const RELAY_ANSWER_BYTES_MAX: usize = 2 << 20;
/// How long a relay gathers acknowledgements while others are awaited, at first.
pub const RELAY_GATHER_ACKS: Duration = Duration::from_millis(4);
/// How often that doubles.
pub const RELAY_GATHER_DOUBLINGS: u32 = 4;
/// How long it gathers renewals.
pub const RELAY_GATHER_RENEWALS: Duration = Duration::from_millis(100);
/// How long a relay may hold a question for what is new.
pub const RELAY_WAIT: Duration = Duration::from_secs(2);
/// How much longer than that an edge waits before it turns to another.
pub const RELAY_PATIENCE: Duration = Duration::from_millis(500);
/// How long a renewal may take through a relay before the edge asks the master itself.
pub const RELAY_RENEW: Duration = Duration::from_secs(1);
/// An edge that is short of the log's end for this long leaves its relay.
pub const RELAY_LAG_MAX: Duration = Duration::from_millis(1500);
/// The rates of two nodes' clocks differ by at most so many millionths (1 %).
pub const CLOCK_DRIFT_PPM: u64 = 10_000;
/// Deadline of a metadata request.
pub const METADATA_DEADLINE: Duration = Duration::from_secs(10);
/// Deadline of a chunk request.
pub const CHUNK_DEADLINE: Duration = Duration::from_secs(15);

const _: () = assert!(CHUNK_BYTES >= CHUNK_BYTES_MIN && CHUNK_BYTES <= CHUNK_BYTES_MAX);
const _: () = assert!(CHUNK_BYTES_MAX as usize <= BODY_BYTES_MAX);
const _: () = assert!(PUT_BATCH_BYTES + CHUNK_BYTES_MAX as usize <= BODY_BYTES_MAX);
const _: () = assert!(XATTRS_MAX * (NAME_BYTES_MAX + 1) <= 64 << 10);
const _: () = assert!(XATTR_BYTES_MAX <= XATTRS_BYTES_MAX);
const _: () = assert!(PAGE_BYTES_MAX < CHUNK_BYTES_MIN as usize);
const _: () = assert!(IDS_MAX * 40 < HEAD_BYTES_MAX);
const _: () = assert!(LIST_CHUNK_ENTRIES * 37 <= CHUNK_BYTES as usize);
const _: () = assert!(PROOF_RULES_BYTES_MAX < PROOF_BYTES_MAX as u64);
const _: () = assert!(PROOF_RULES_BYTES_MAX / (CHUNK_BYTES_MIN as u64) < PROOF_CHUNKS_MAX as u64);
const _: () = assert!(RULES_BYTES_MAX / (CHUNK_BYTES_MIN as usize) <= CONTENT_INLINE_CHUNKS_MAX);
const _: () = assert!(REPLICAS_DURABLE <= REPLICAS);
const _: () = assert!(PENDING_LIFETIME.as_secs() > RECEIPT_LIFETIME.as_secs());
const _: () = assert!(QUARANTINE_LIFETIME.as_secs() > PENDING_LIFETIME.as_secs());
const _: () = assert!(SNAPSHOT_DEPLOYS_MAX * 32 * 4 <= HEAD_BYTES_MAX);
const _: () = assert!(WALK_IDS_MAX * 34 < HEAD_BYTES_MAX);
const _: () = assert!(DELTAS_MAX * 48 < HEAD_BYTES_MAX);
const _: () = assert!(LEASE_RENEW_EVERY.as_millis() * 3 <= LEASE_TERM.as_millis());
const _: () = assert!(RELAY_ITEMS_MAX * 100 < HEAD_BYTES_MAX);
const _: () = assert!(RELAY_ANSWER_BYTES_MAX * 2 <= HEAD_BYTES_MAX);
const _: () =
    assert!(RELAY_RENEW.as_millis() + LEASE_RENEW_EVERY.as_millis() * 2 < LEASE_TERM.as_millis());
const _: () = assert!((ERASED_PART + ERASE_CHUNKS_MAX) * 48 < HEAD_BYTES_MAX);
const _: () = assert!(ERASE_BYTES_MAX + (64 << 10) < HEAD_BYTES_MAX);
const _: () = assert!(UNREFERENCED_PART * 48 < HEAD_BYTES_MAX);
const _: () = assert!(HEARTBEAT_QUIET.as_millis() * 5 / 2 < HEARTBEAT_LOST.as_millis());
