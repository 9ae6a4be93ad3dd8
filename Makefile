# make               builds extension/activation--X.sql from the parts of sql/ that sql/manifest names, in that order
# make install       installs it and its Python package into the server that PG_CONFIG names; honours DESTDIR;
#                    WHEELS=dir takes the Python dependencies from there and needs no network
# make wheels        fetches them into dist/wheels, or into WHEELS
# make uninstall
# make test          T=path runs a part of the tests
# make test-fast     runs the files that FAST names, in about a minute
# make demo          LIVE=you@your.domain with RESEND_API_KEY set also sends one real mail
# make lint, bench
# make reference     writes docs/reference.md from the comments in the database, docs/definition.md from the schema
# make fuzz          SEED=n MINUTES=m; the same seed makes the same inputs
# make chaos         SEED=n or SEEDS=a-b, MINUTES=m for each; with SEEDS it writes bench/CHAOS.md
# make clean         also removes what these have built outside the checkout
#
# test, test-fast, lint, reference, demo, bench, fuzz and chaos install what the machine lacks (scripts/with-env), and leave the installed PostgreSQL alone.

EXTENSION = activation
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" activation.control)

# Each part uses only what stands in the parts above it; scripts/check_sql.py looks at that.
PARTS := $(patsubst %,sql/%.sql,$(shell cat sql/manifest))
BUILT = extension/$(EXTENSION)--$(EXTVERSION).sql
DATA = $(wildcard extension/$(EXTENSION)--*--*.sql)
DATA_built = $(BUILT)

.DEFAULT_GOAL := all

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifneq ($(wildcard $(PGXS)),)
include $(PGXS)
else
all install uninstall wheels:
	@echo 'There is no server to build for at PG_CONFIG=$(PG_CONFIG). On Debian: apt install postgresql postgresql-plpython3-NN.' >&2; exit 1
clean:
endif

$(BUILT): sql/manifest $(PARTS)
	cat $(PARTS) > $@.new && mv $@.new $@

# The server's functions import their package from a directory named after the version, so that two versions can stand
# beside each other. PYTHON is PGXS's: the interpreter that plpython3u was built with.
PACKAGE = $(pkglibdir)/$(EXTENSION)-$(EXTVERSION)
DEPENDENCIES = $$($(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'])")
PIP = $(PYTHON) -m pip --quiet --disable-pip-version-check --no-input

ifneq ($(wildcard $(PGXS)),)
install: install-python
uninstall: uninstall-python

install-python: installdirs
	rm -rf '$(DESTDIR)$(PACKAGE).new'
	$(PIP) install --root-user-action=ignore --no-compile --target '$(DESTDIR)$(PACKAGE).new' --constraint python/constraints.txt \
	  $(if $(WHEELS),--no-index --find-links '$(WHEELS)') $(DEPENDENCIES)
	cp -R python/activation '$(DESTDIR)$(PACKAGE).new/activation'
	find '$(DESTDIR)$(PACKAGE).new' -name __pycache__ -prune -exec rm -rf {} +
	$(PYTHON) -m compileall -qq -s '$(DESTDIR)$(PACKAGE).new' -p '$(PACKAGE)' '$(DESTDIR)$(PACKAGE).new'
	chmod -R u+rwX,go+rX,go-w '$(DESTDIR)$(PACKAGE).new'
	rm -rf '$(DESTDIR)$(PACKAGE)'
	mv '$(DESTDIR)$(PACKAGE).new' '$(DESTDIR)$(PACKAGE)'

uninstall-python:
	rm -rf '$(DESTDIR)$(PACKAGE)'

wheels:
	$(PIP) wheel --wheel-dir '$(or $(WHEELS),dist/wheels)' --constraint python/constraints.txt $(DEPENDENCIES)
endif

# All of it in three processes: much of it waits for pg_cron's minutes. What is asked for by name, in one.
test:
	@scripts/with-env pytest $(or $(T),--numprocesses=3 --dist=loadfile --no-loadscope-reorder)

# For every minute: what needs no server, pgTAP, and one or two files of each behaviour. No pg_cron's minutes, no browser,
# no chaos. A new file in a folder that stands here belongs to it, another one only when it is named.
FAST = test/sql test/define/test_literals.py test/define/test_loops_rendered.py \
  test/define/test_mailbox.py test/define/test_skene_files.py test/define/test_sqltext_scanner.py test/define/test_text.py \
  test/capture/test_rows.py test/detect/test_batch_size.py test/detect/test_conditions.py test/deliver/test_claim.py \
  test/deliver/test_markup.py test/deliver/test_render.py test/deliver/test_requests.py test/deliver/test_resend.py \
  test/consent/test_signature.py test/insight/test_statistics.py test/app/test_cli_output.py test/attacks/test_secrets.py \
  test/docs/test_release.py test/docs/test_releasing.py test/sandbox test/support/test_suites.py

test-fast:
	@scripts/with-env pytest $(FAST) --numprocesses=2 --dist=loadfile --no-loadscope-reorder

lint:
	@scripts/with-env scripts/lint

reference:
	@scripts/with-env python scripts/reference.py > docs/reference.md.new && mv docs/reference.md.new docs/reference.md || \
	  { rm -f docs/reference.md.new; exit 1; }
	@python3 scripts/document_schema.py

demo:
	@$(if $(LIVE),DEMO_API_KEY="$$RESEND_API_KEY") scripts/with-env python examples/demo.py $(if $(LIVE),--live '$(LIVE)')

# QUICK=1 takes three minutes and only shows its report; otherwise that becomes bench/RESULTS.md, with its charts.
bench:
	@out=$$(mktemp -d) && chmod 777 "$$out" && \
	scripts/with-env --bench python bench/run.py $(if $(QUICK),--quick,--into "$$out") $(ARGS) && \
	$(if $(QUICK),,cp "$$out"/* bench &&) rm -rf "$$out"

bench-soak:
	@scripts/with-env --bench python bench/soak.py $(ARGS)

bench-rate:
	@scripts/with-env python bench/rate.py $(ARGS)

bench-seeds:
	@scripts/with-env python bench/seeds.py $(ARGS)

bench-history:
	@scripts/with-env python bench/history.py $(ARGS)

fuzz:
	@scripts/with-env python test/fuzz/fuzz.py --seed '$(or $(SEED),1)' --minutes '$(or $(MINUTES),1)' $(ARGS)

# A run of several seeds is the report.
chaos:
	@scripts/with-env python test/chaos/run.py --seeds '$(or $(SEEDS),$(SEED),1)' --minutes '$(or $(MINUTES),1)' $(ARGS) \
	  $(if $(SEEDS),> bench/CHAOS.md.new; status=$$?; cat bench/CHAOS.md.new; \
	  [ ! -s bench/CHAOS.md.new ] || mv bench/CHAOS.md.new bench/CHAOS.md; rm -f bench/CHAOS.md.new; exit $$status)

clean: clean-environment
clean-environment:
	rm -rf dist
	scripts/with-env --clean

.PHONY: install-python uninstall-python wheels test test-fast lint demo bench bench-soak bench-rate bench-seeds bench-history fuzz chaos clean-environment
