-- Who writes which table, from the catalog: a table has one part that writes it, and what is listed here besides.
\ir setup.sql
SELECT plan(3);

-- In every table: _erase() forgets a person, and _remove_old_…() what is older than its retention. A loop that is defined,
-- bound, archived or resumed takes along what hangs on it. Transitions that several parts need stand in
-- sql/engine/transitions.sql. Whoever adds a writer here says in the part's head, or at the function, why the
-- table's own part cannot do it.
CREATE TEMPORARY TABLE writer AS
SELECT * FROM (VALUES
    ('attempt', '{_erase, _record_try, _remove_old_attempts, _remove_old_messages, _resolve}'::text[]),
    ('backfill', '{_archive_loop, _backfill_chunk, _begin_backfill}'::text[]),
    ('capture_failure', '{_enroll_signals, _erase, _note_unreadable_deletion, _remove_old_events, _set_signal_aside}'::text[]),
    ('consent', '{_erase, _subscribe}'::text[]),
    ('enrollment', '{_advance, _archive_loop, _claim_goal_reached, _detect_bad_user, _detect_decide, _detect_defer, _enroll_signals, _erase, _exit_enrollments, _migrate_loop, _resume_loop}'::text[]),
    ('erasure', '{_erase, _erase_due, _take_deletions, erase}'::text[]),
    ('event', '{_erase, _remove_old_events, track}'::text[]),
    ('hourly_sends', '{_count_hourly_sends, _sum_hourly_sends}'::text[]),
    ('identity', '{set_mode}'::text[]),
    ('loop', '{_define, _erase, _resume_loop, _set_loop_state}'::text[]),
    ('loop_version', '{_compile_version, _store_version, _sync_owners, _sync_source}'::text[]),
    ('message', '{_advance, _apply_event_to_message, _cancel_queue_of_loop, _claim_messages, _claim_put_back, _claim_unwanted, _end_queued, _erase, _expire_requests, _finish_messages, _postpone_queued, _record_try, _remove_old_messages, _resolve, _store_request, set_mode}'::text[]),
    ('mutex', '{_lock}'::text[]),
    ('overview_numbers', '{_kept_numbers}'::text[]),
    ('past_address', '{_erase, _remember_addresses, _remove_old_events}'::text[]),
    ('provider', '{_end_pause, _learn_from_answer, configure, resume}'::text[]),
    ('pull', '{_note_pull, _note_sync}'::text[]),
    ('rate_permit', '{_free_permit, _lock_permits, _take_permits}'::text[]),
    ('remark', '{_erase, _remark, _remark_left_out, _remove_old_events}'::text[]),
    ('request', '{_claim_requests, _erase, _expire_requests, _record_try, _remove_old_attempts, _remove_old_messages, _store_request, set_mode}'::text[]),
    ('retention', '{set_retention}'::text[]),
    ('schedule', '{_set_watching, start, stop}'::text[]),
    ('secret', '{set_secret}'::text[]),
    ('setting', '{configure, set_mode}'::text[]),
    ('signal', '{_archive_loop, _ask_filters, _backfill_chunk, _capture_body, _define, _enroll, _enroll_signals, _erase, _filter_statements, _set_signal_aside, _take_deletions, track}'::text[]),
    ('signing', '{_signing_key}'::text[]),
    ('source', '{_capture_source, _define, _sync_source}'::text[]),
    ('step', '{_bind, _compile_step, _store_version}'::text[]),
    ('strike', '{_archive_loop, _claim_checked, _clear_strikes, _define, _detect_postpone, _erase, _fail_at_once, _resume_loop, _strike}'::text[]),
    ('suppression', '{_erase, _keep_event, _suppress, unsuppress}'::text[]),
    ('sweep', '{_advance_sweep, _archive_loop, _bind, _compile_step, _order_sweep}'::text[]),
    ('template', '{_set_template}'::text[]),
    ('topic', '{set_topic}'::text[]),
    ('unsuppression', '{_erase, _note_unsuppressed, _suppress_by_hand, unsuppress}'::text[]),
    ('users_table', '{_register_users, _sync_source}'::text[]),
    ('wake', '{_capture_body, _erase, _renew_wake, _restore_wake_marker, _take_wakes, track}'::text[]),
    ('watch', '{_bind, _compile_step}'::text[]),
    ('webhook_event', '{_apply_event, _apply_event_to_message, _erase, _keep_event, _remove_old_events, _remove_old_messages}'::text[]),
    ('worker', '{_beat, _end_overdue, _leave_slot, _take_slot, start}'::text[])) AS w(table_name, functions);

CREATE TEMPORARY TABLE found AS
SELECT DISTINCT m[2] AS table_name, p.proname::text AS function
  FROM pg_proc p,
       regexp_matches(regexp_replace(p.prosrc, '--[^\n]*', '', 'g'),
                      '\m(INSERT INTO|UPDATE|DELETE FROM|TRUNCATE)\s+activation\."?(\w+)', 'g') AS m
 WHERE p.pronamespace = 'activation'::regnamespace AND m[2] <> 'call';

SELECT is_empty('SELECT table_name, function FROM found EXCEPT SELECT table_name, unnest(functions) FROM writer',
                'nobody writes a table but who is listed');
SELECT is_empty('SELECT table_name, unnest(functions) FROM writer EXCEPT SELECT table_name, function FROM found',
                'nobody is listed who does not write it');
SELECT is_empty($$SELECT f.function FROM found f WHERE left(f.function, 1) <> '_'
                   AND f.function NOT IN ('configure', 'set_mode', 'set_retention', 'set_secret', 'set_topic', 'start', 'stop', 'resume', 'track', 'erase', 'unsuppress')$$,
                'other verbs write through a private function');

SELECT * FROM finish();
ROLLBACK;
