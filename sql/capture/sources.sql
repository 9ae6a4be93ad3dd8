-- Sources: which tables are captured, by which key columns, and what their columns are called now.

-- A name for a generated function, at most 63 bytes: what it is for, cut if need be, and a suffix
-- that makes it unique.
CREATE FUNCTION activation._compiled_name(base text, suffix text) RETURNS name
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    cut text := base;
BEGIN
    WHILE octet_length(cut || suffix) > 63 LOOP
        cut := left(cut, -1);
    END LOOP;
    RETURN cut || suffix;
END
$$;

-- The names of a table's columns, in their order.
CREATE FUNCTION activation._user_columns(users regclass) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a
     WHERE a.attrelid = users AND a.attnum > 0 AND NOT a.attisdropped
$$;

-- The numbers of those of some columns of a table that still exist, in the order given.
CREATE FUNCTION activation._column_numbers(table_name regclass, columns name[]) RETURNS smallint[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY(SELECT a.attnum FROM unnest(columns) WITH ORDINALITY AS c(attname, ordinal)
                   JOIN pg_attribute a ON a.attrelid = table_name AND a.attname = c.attname
                                      AND NOT a.attisdropped
                  ORDER BY c.ordinal)
$$;

-- The names of those of some columns of a table that still exist, in the order given.
CREATE FUNCTION activation._column_names(table_name regclass, attnums smallint[]) RETURNS name[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY(SELECT a.attname FROM unnest(attnums) WITH ORDINALITY AS c(attnum, ordinal)
                   JOIN pg_attribute a ON a.attrelid = table_name AND a.attnum = c.attnum
                                      AND NOT a.attisdropped
                  ORDER BY c.ordinal)
$$;

-- The columns of a table's primary key, in its order; none without one. Columns that its index only
-- includes are not of the key.
CREATE FUNCTION activation._primary_key(table_name regclass) RETURNS name[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY(SELECT a.attname
                   FROM pg_index i
                   CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(attnum, ordinal)
                   JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                  WHERE i.indrelid = table_name AND i.indisprimary
                    AND k.ordinal <= i.indnkeyatts
                  ORDER BY k.ordinal)
$$;

-- The column that is a table's whole primary key. NULL without one, or where it has several.
CREATE FUNCTION activation._primary_key_column(table_name regclass) RETURNS name
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k[1] FROM activation._primary_key(table_name) AS k WHERE cardinality(k) = 1
$$;

-- What the old and the new version of an updated row have in common: the primary key of its table,
-- as a condition over the rows n and o. NULL without one.
CREATE FUNCTION activation._same_row_condition(table_name regclass) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(format('pg_catalog.format(''%%s'', n.%1$I) OPERATOR(pg_catalog.=) '
                             'pg_catalog.format(''%%s'', o.%1$I)', k.name),
                      ' AND ' ORDER BY k.ordinal)
      FROM unnest(activation._primary_key(table_name)) WITH ORDINALITY AS k(name, ordinal)
$$;

-- Brings what is stored of a captured table's columns up to date. Columns are followed by number
-- through renames; after a restore numbers may differ and names are right.
CREATE FUNCTION activation._sync_source(table_name regclass) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE activation.loop_version v
       SET filter_attnums = activation._column_numbers(s.table_name, v.filter_columns),
           old_attnums = activation._column_numbers(s.table_name, v.old_columns)
      FROM activation.source s
     WHERE s.table_name = _sync_source.table_name AND s.table_oid <> s.table_name
       AND v.source_id = s.source_id AND v.filter_function IS NOT NULL;
    UPDATE activation.source s
       SET key_attnum = a.attnum, table_oid = s.table_name
      FROM pg_attribute a
     WHERE s.table_name = _sync_source.table_name
       AND s.table_oid <> s.table_name
       AND a.attrelid = s.table_name AND a.attname = s.key_column AND NOT a.attisdropped;
    UPDATE activation.users_table u
       SET key_column = a.attname
      FROM activation.source s
      JOIN pg_attribute a ON a.attrelid = s.table_name AND a.attnum = s.key_attnum
     WHERE s.table_name = _sync_source.table_name AND u.users = s.table_name
       AND u.key_column = s.key_column AND a.attname <> s.key_column AND NOT a.attisdropped;
    UPDATE activation.source s
       SET key_column = a.attname
      FROM pg_attribute a
     WHERE s.table_name = _sync_source.table_name
       AND a.attrelid = s.table_name AND a.attnum = s.key_attnum AND NOT a.attisdropped
       AND a.attname <> s.key_column;
    UPDATE activation.loop_version v
       SET filter_columns = now.new_names, old_columns = now.old_names
      FROM (SELECT f.loop_id, f.version,
                   activation._column_names(s.table_name, f.filter_attnums) AS new_names,
                   activation._column_names(s.table_name, f.old_attnums) AS old_names
              FROM activation.loop_version f JOIN activation.source s USING (source_id)
             WHERE s.table_name = _sync_source.table_name AND f.filter_function IS NOT NULL) now
     WHERE v.loop_id = now.loop_id AND v.version = now.version
       AND (v.filter_columns, v.old_columns) IS DISTINCT FROM (now.new_names, now.old_names)
       -- Where a column is gone, _follow() says so.
       AND cardinality(v.filter_columns || v.old_columns)
           = cardinality(now.new_names || now.old_names);
END
$$;

-- The source that a column of a table is, made where there is none.
CREATE FUNCTION activation._capture_source(table_name regclass, key_column name) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_id integer;
BEGIN
    PERFORM activation._sync_source(table_name);
    INSERT INTO activation.source (table_name, key_column, key_attnum, table_oid)
    SELECT _capture_source.table_name, a.attname, a.attnum, _capture_source.table_name
      FROM pg_attribute a
     WHERE a.attrelid = _capture_source.table_name AND a.attname = _capture_source.key_column
       AND NOT a.attisdropped
    ON CONFLICT DO NOTHING;
    SELECT s.source_id INTO STRICT found_id
      FROM activation.source s
     WHERE s.table_name = _capture_source.table_name AND s.key_column = _capture_source.key_column;
    RETURN found_id;
END
$$;
